"""Random weights under the official names and shapes, for all three faces."""

import numpy as np

from tests.fit_model.numpy_layers import blocks_of, suffix


class Shapes(dict):
    """Shapes of variables, added a layer at a time."""

    def dense(self, name, inputs, outputs):
        self[f"{name}/kernel"], self[f"{name}/bias"] = (inputs, outputs), (outputs,)

    def norm(self, name, width):
        self[f"{name}/gamma"], self[f"{name}/beta"] = (width,), (width,)

    def heads(self, name, asking, offering, count, head):
        for part, width in (("query", asking), ("key", offering), ("value", offering)):
            self[f"{name}/{part}/kernel"] = (width, count, head)
            self[f"{name}/{part}/bias"] = (count, head)
        self[f"{name}/attention_output/kernel"] = (count, head, asking)
        self[f"{name}/attention_output/bias"] = (asking,)

    def feed_forward(self, name, width, ratio):
        self.norm(f"{name}/ffn/ln", width)
        self.dense(f"{name}/ffn/dense1", width, ratio * width)
        self.dense(f"{name}/ffn/dense2", ratio * width, width)

    def layer(self, name, width, ratio, count, part):
        if part:
            self.norm(f"{name}/{part}/ln", width)
            self.heads(f"{name}/{part}", width, width, count, width // count)
        self.feed_forward(f"{name}/mlp", width, ratio)

    def cross(self, name, asking, offering, count, config, ratio=None):
        part = f"{name}/cross_mha"
        self.norm(f"{part}/ln", asking)
        if config.get("xattn_enc_ln", True):
            self.norm(f"{part}/enc_ln", offering)
        self.heads(part, asking, offering, count, min(asking, offering) // count)
        if ratio and config.get("xattn_with_mlp", False):
            self.feed_forward(f"{name}/mlp", asking, ratio)

    def trunk(self, config, *, layer, part, conditioned):
        d, e, r = config["x_dim"], config["latent_dim"], config.get("mlp_ratio", 4)
        hd, he = config["x_num_heads"], config["latent_num_heads"]
        local = part if config.get("x_self_attention", True) else None
        blocks = blocks_of(config["layers"])
        for i, (num_local, num_global) in enumerate(blocks):
            for j in range(num_local):
                self.layer(f"x_network{suffix(i)}/{layer}{suffix(j)}", d, r, hd, local)
            for j in range(num_global):
                self.layer(f"l_network{suffix(i)}/{layer}{suffix(j)}", e, r, he, part)
            if num_global:
                self.cross(f"l2x_cross_attn{suffix(i)}", e, d, min(hd, he), config, r)
                if conditioned:
                    self.cross(f"l2c_cross_attn{suffix(i)}", e, e, he, config)
            if i < len(blocks) - 1:
                self.cross(f"x2l_cross_attn{suffix(i)}", d, e, min(hd, he), config, r)

    def positions(self, config):
        t, m = config["num_groups"], config["latents_per_group"]
        if config.get("x_pos_encoding", "learned") == "learned":
            rows = config["x_size"] // t
            self["x_pos_emb/kernel/vis_pos_embedding"] = (rows, config["x_dim"])
        if config.get("latent_pos_encoding", "learned") == "learned":
            self["latent_pos_emb/kernel/vis_pos_embedding"] = (t * m, config["latent_dim"])

    def draw(self, seed):
        """Of a scale that keeps outputs of order 1."""
        generator = np.random.default_rng(seed)
        return {
            f"fit/{name}": generator.normal(float(name.endswith("gamma")), 0.3, shape).astype(
                np.float32
            )
            for name, shape in self.items()
        }


def of_encoder(config, *, channels, identities=None, seed=1):
    d, shapes = config["x_dim"], Shapes()
    shapes.dense("stem", channels, d), shapes.norm("stem_ln", d)
    shapes.norm("x_output_ln", d), shapes.norm("l_output_ln", config["latent_dim"])
    if identities:
        shapes.dense("stem_y", identities, d), shapes.norm("stem_y_ln", d)
    shapes.positions(config)
    shapes.trunk(config, layer="transformer_encoder", part="mha", conditioned=False)
    return shapes.draw(seed)


def of_denoiser(config, *, classes=None, seed=1):
    d, e, shapes = config["x_dim"], config["latent_dim"], Shapes()
    shapes.dense("stem", config["out_dim"], d), shapes.norm("stem_ln", d)
    shapes.dense("time_emb/dense0", e // 4, e), shapes.dense("time_emb/dense1", e, e)
    if classes:
        shapes.dense("cond_proj", classes, e)
    if config.get("self_cond", "none") == "latent":
        shapes.feed_forward("latent_prev_proj", e, config.get("mlp_ratio", 4))
        shapes.norm("latent_prev_ln", e)
    shapes.norm("x_output_ln", d), shapes.dense("x_output_linear", d, config["out_dim"])
    shapes.positions(config)
    shapes.trunk(config, layer="transformer_encoder", part="mha", conditioned=True)
    return shapes.draw(seed)


def of_decoder(config, *, seed=1):
    d, v, shapes = config["x_dim"], config["vocab_size"], Shapes()
    if config.get("shared_embedding", True):
        shapes["token_embedding"] = (v, d)
    else:
        shapes["inp_token_embedding"] = shapes["outp_token_embedding"] = (v, d)
    if config.get("output_bias", True):
        shapes["outp_bias"] = (v,)
    shapes.norm("x_output_ln", d)
    shapes.positions(config)
    shapes.trunk(config, layer="transformer_decoder_layer", part="self_mha", conditioned=False)
    return shapes.draw(seed)
