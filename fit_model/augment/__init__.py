"""Images as they might as well have been taken: turned, cropped, in other colours."""
