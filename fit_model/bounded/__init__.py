"""Exact gradients of images of any size: the trunk over chunks of groups, in bounded memory."""
