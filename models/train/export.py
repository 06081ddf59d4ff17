"""Writes a checkpoint that steamd serves (safetensors, config, generation_config), and reads one."""
import json
import struct
from pathlib import Path

import numpy as np
import torch

from network import GROUP, MoE, quantise

DTYPES = {"BF16": 2, "F32": 4, "I32": 4, "I64": 8}


def bytes_of(tensor, dtype):
    t = tensor.detach().cpu().contiguous()
    if dtype == "BF16":
        return t.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    kinds = {"F32": np.float32, "I32": np.int32, "I64": np.int64}
    return t.numpy().astype(kinds[dtype]).tobytes()


def packed(codes):
    """Codes [rows, groups, 32] as words of eight nibbles, the lowest first."""
    nibbles = (codes + 8).to(torch.int64).flatten(-2).unflatten(-1, (-1, 8))
    words = (nibbles << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words)


def tensors_of(network, quantised):
    """name, dtype, tensor of everything that a checkpoint has."""
    s = network.s
    yield "model.embed_tokens.weight", "BF16", network.embed_tokens.weight
    yield "model.norm.weight", "BF16", network.norm.weight
    yield "lm_head.weight", "BF16", network.lm_head.weight
    for i, layer in enumerate(network.layers):
        at = f"model.layers.{i}."
        for name, p in layer.named_parameters():
            if not name.startswith("mlp.") or not isinstance(layer.mlp, MoE):
                yield at + name, "BF16", p
        if not isinstance(layer.mlp, MoE):
            continue
        for name, p in layer.mlp.shared_experts.named_parameters():
            yield at + "mlp.shared_experts." + name, "BF16", p
        yield at + "mlp.gate.weight", "BF16", layer.mlp.router
        yield at + "mlp.gate.e_score_correction_bias", "F32", layer.mlp.bias
        for e in range(s.experts):
            for name in ("gate", "up", "down"):
                w = getattr(layer.mlp, name)[e].detach().cpu().float()
                full = f"{at}mlp.experts.{e}.{name}_proj.weight"
                if not quantised:
                    yield full, "BF16", w
                    continue
                codes, scale = quantise(w)
                yield full + "_packed", "I32", packed(codes)
                yield full + "_scale", "BF16", scale.squeeze(-1)
                yield full + "_shape", "I64", torch.tensor(w.shape)


def write_safetensors(path, tensors):
    parts = [(name, dtype, list(t.shape), bytes_of(t, dtype)) for name, dtype, t in tensors]
    parts.sort(key=lambda p: (-DTYPES[p[1]], p[0]))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, data in parts:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, _, data in parts:
            f.write(data)
    return at


def quantization_config(network):
    ignored = ["lm_head"]
    for i, layer in enumerate(network.layers):
        moe = isinstance(layer.mlp, MoE)
        ignored += [f"model.layers.{i}.self_attn.{n}_proj" for n in "qkvo"]
        ignored += [f"model.layers.{i}.mlp.{'shared_experts.' if moe else ''}{n}_proj"
                    for n in ("gate", "up", "down")]
    return {
        "config_groups": {
            "group_0": {
                "format": "pack-quantized",
                "input_activations": None,
                "output_activations": None,
                "targets": ["re:.*mlp\\.experts\\.[0-9]+\\.(down|gate|up)_proj$"],
                "weights": {
                    "actorder": None, "block_structure": None, "dynamic": False,
                    "group_size": GROUP, "num_bits": 4, "observer": "minmax",
                    "observer_kwargs": {}, "strategy": "group", "symmetric": True,
                    "type": "int",
                },
            },
        },
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": sorted(ignored),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
    }


def config_of(network, eos, quantised):
    s = network.s
    config = {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": eos,
        "first_k_dense_replace": s.dense,
        "head_dim": s.head_dim,
        "hidden_act": "silu",
        "hidden_size": s.dim,
        "initializer_range": 0.02,
        "intermediate_size": s.ffn,
        "max_position_embeddings": s.context,
        "model_type": "glm4_moe",
        "moe_intermediate_size": s.moe_ffn,
        "n_group": 1,
        "n_routed_experts": s.experts,
        "n_shared_experts": s.shared,
        "norm_topk_prob": True,
        "num_attention_heads": s.heads,
        "num_experts_per_tok": s.top_k,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "pad_token_id": eos[0],
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": s.eps,
        "rope_scaling": None,
        "rope_theta": s.theta,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_qk_norm": False,
        "vocab_size": s.vocab,
    }
    if quantised:
        config["quantization_config"] = quantization_config(network)
    return config


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def export(network, directory, eos, quantised=True):
    """Weights and configuration; the tokenizer and the template are the caller's. Returns bytes."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    n = write_safetensors(directory / "model.safetensors", tensors_of(network, quantised))
    write_json(directory / "config.json", config_of(network, eos, quantised))
    write_json(directory / "generation_config.json", {
        "do_sample": True, "eos_token_id": eos, "pad_token_id": eos[0],
        "temperature": 0.3, "min_p": 0.1,
    })
    return n


def read_safetensors(path):
    """name: tensor of everything in a file of write_safetensors()."""
    data = Path(path).read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    types = {"BF16": torch.bfloat16, "F32": torch.float32, "I32": torch.int32, "I64": torch.int64}
    found = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + x for x in entry["data_offsets"])
            found[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=types[entry["dtype"]]
                                           ).reshape(entry["shape"])
    return found


def unpacked(words):
    """What packed() packed: codes [rows, columns]."""
    return ((words.long()[..., None] >> (4 * torch.arange(8))) & 15).flatten(-2) - 8


@torch.no_grad()
def read_model(network, directory):
    """Gives @network the weights of the checkpoint of its shape in @directory."""
    found = read_safetensors(Path(directory) / "model.safetensors")
    for name, _, p in tensors_of(network, False):
        stored = found.get(name)
        if stored is None:
            codes = unpacked(found[name + "_packed"])
            scale = found[name + "_scale"].float()
            stored = (codes.unflatten(-1, (-1, GROUP)) * scale[..., None]).flatten(-2)
        if stored.shape != p.shape:
            raise SystemExit(f"train: '{name}' in {directory} is {list(stored.shape)}, not {list(p.shape)}")
        p.copy_(stored)
