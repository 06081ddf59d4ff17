"""The glm4_moe architecture in PyTorch, for training: small, plain, without a cache.

Routed experts may be computed as they will be stored: int4 in groups of 32, rounded
here exactly as export.py writes them; gradients pass through the rounding.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

GROUP = 32


@dataclass
class Shape:
    vocab: int = 4160
    dim: int = 320
    layers: int = 6
    dense: int = 1
    ffn: int = 960
    moe_ffn: int = 320
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 8
    top_k: int = 2
    shared: int = 1
    context: int = 4096
    theta: float = 10000.0
    eps: float = 1e-5


def quantise(w):
    """Codes from -8 to 7 and bf16 scales of a matrix [..., out, in], by groups of inputs."""
    groups = w.unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 7.5
    scale = scale.clamp_min(1e-8).to(torch.bfloat16).to(w.dtype)
    codes = torch.clamp(torch.round(groups / scale), -8, 7)
    return codes, scale


def as_stored(w):
    codes, scale = quantise(w.detach())
    return w + ((codes * scale).flatten(-2) - w.detach())


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.dim, s.heads * s.head_dim)
        self.k_proj = nn.Linear(s.dim, s.kv_heads * s.head_dim)
        self.v_proj = nn.Linear(s.dim, s.kv_heads * s.head_dim)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.dim, bias=False)

    def forward(self, x, rotation, rectangles, back):
        s = self.s
        q = rotate(self.q_proj(x).unflatten(-1, (s.heads, s.head_dim)), rotation)
        k = rotate(self.k_proj(x).unflatten(-1, (s.kv_heads, s.head_dim)), rotation)
        v = self.v_proj(x).unflatten(-1, (s.kv_heads, s.head_dim))
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, 1) for t in (k, v))
        out = []
        for places in rectangles:
            # padding stands behind the text, so that causality alone hides it
            qs, ks, vs = (t[places].transpose(1, 2) for t in (q, k, v))
            later = torch.ones(places.shape[1:] * 2, dtype=torch.bool, device=x.device).triu(1)
            scores = (qs @ ks.transpose(-1, -2)).float() * s.head_dim ** -0.5
            shares = scores.masked_fill(later, float("-inf")).softmax(-1).to(x.dtype)
            out.append((shares @ vs).transpose(1, 2).flatten(0, 1))
        return self.o_proj(torch.cat(out)[back].flatten(1))


def rotation_of(s):
    """cos and sin [context, head_dim / 4]: half of each head turns, by halves of that half."""
    turned = s.head_dim // 2
    rates = s.theta ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)
    angles = torch.arange(s.context, dtype=torch.float64)[:, None] * rates[None]
    return angles.cos().float(), angles.sin().float()


def rotate(x, rotation):
    cos, sin = rotation
    half = x.shape[-1] // 4
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return torch.cat(((a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest), -1)


class Rows:
    """
    Texts of any lengths without padding: all tokens one after another, where each stands in
    its text, and for attention alone rectangles of texts of about the same length.
    """

    def __init__(self, texts, device="cpu", n_rectangles=1):
        lengths = torch.tensor([len(t) for t in texts])
        starts = lengths.cumsum(0) - lengths
        self.ids = torch.cat([torch.as_tensor(t) for t in texts]).to(device)
        self.position = (torch.arange(len(self.ids)) -
                         starts.repeat_interleave(lengths)).to(device)
        order = lengths.argsort()
        n = -(-len(order) // n_rectangles)
        self.rectangles, at, back = [], 0, torch.zeros(len(self.ids), dtype=torch.long)
        for part in order.split(n):
            length = int(lengths[part].max())
            offsets = torch.arange(length)
            inside = offsets < lengths[part, None]
            places = torch.where(inside, starts[part, None] + offsets, starts[part, None])
            back[places[inside]] = (at + torch.arange(places.numel()).view_as(places))[inside]
            self.rectangles.append(places.to(device))
            at += places.numel()
        self.back = back.to(device)


class MLP(nn.Module):
    def __init__(self, dim, ffn):
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn, bias=False)
        self.up_proj = nn.Linear(dim, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """Chosen by sigmoid plus a bias that evens out the load; weighed by the sigmoids alone."""

    def __init__(self, s):
        super().__init__()
        self.s = s
        self.router = nn.Parameter(torch.randn(s.experts, s.dim) * 0.02)
        self.register_buffer("bias", torch.zeros(s.experts))
        self.register_buffer("load", torch.zeros(s.experts), persistent=False)
        self.gate = nn.Parameter(torch.randn(s.experts, s.moe_ffn, s.dim) * 0.02)
        self.up = nn.Parameter(torch.randn(s.experts, s.moe_ffn, s.dim) * 0.02)
        self.down = nn.Parameter(torch.randn(s.experts, s.dim, s.moe_ffn) * 0.02)
        self.shared_experts = MLP(s.dim, s.moe_ffn * s.shared)
        self.quantised = False

    def forward(self, x):
        s = self.s
        flat = x
        scores = torch.sigmoid(F.linear(flat, self.router).float())
        chosen = (scores.detach() + self.bias).topk(s.top_k, -1).indices
        weights = scores.gather(1, chosen)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        gate, up, down = self.gate, self.up, self.down
        if self.quantised:
            gate, up, down = as_stored(gate), as_stored(up), as_stored(down)
        if self.training:
            self.load += F.one_hot(chosen, s.experts).sum((0, 1))
        apart = self.every_expert if x.is_cuda else self.by_expert
        routed = apart(flat, chosen, weights, gate, up, down)
        return routed + self.shared_experts(flat)

    def every_expert(self, flat, chosen, weights, gate, up, down):
        """Each token through every expert: more arithmetic, but nothing that the host waits for."""
        share = weights.new_zeros(len(flat), self.s.experts).scatter(1, chosen, weights)
        h = F.silu(flat @ gate.transpose(1, 2)) * (flat @ up.transpose(1, 2))
        return torch.einsum("etd,te->td", h @ down.transpose(1, 2), share)

    def by_expert(self, flat, chosen, weights, gate, up, down):
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.s.experts)
        tokens = order // self.s.top_k
        pieces = flat[tokens].split(counts.tolist())
        out = [F.linear(F.silu(F.linear(p, g)) * F.linear(p, u), d)
               for p, g, u, d in zip(pieces, gate.unbind(), up.unbind(), down.unbind())]
        out = torch.cat(out) * weights.flatten()[order, None]
        return torch.zeros_like(flat).index_add(0, tokens, out)

    def even_out(self, step):
        """Moves the bias towards experts that had less than their share since the last call."""
        self.bias += step * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class Layer(nn.Module):
    def __init__(self, s, index):
        super().__init__()
        self.input_layernorm = RMSNorm(s.dim, s.eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RMSNorm(s.dim, s.eps)
        self.mlp = MLP(s.dim, s.ffn) if index < s.dense else MoE(s)
        self.dropout = 0.0

    def forward(self, x, *where):
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), *where), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Network(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.embed_tokens = nn.Embedding(s.vocab, s.dim)
        self.layers = nn.ModuleList(Layer(s, i) for i in range(s.layers))
        self.norm = RMSNorm(s.dim, s.eps)
        self.lm_head = nn.Linear(s.dim, s.vocab, bias=False)
        for name, table in zip(("cos", "sin"), rotation_of(s)):
            self.register_buffer(name, table, persistent=False)
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith(".bias"):
                nn.init.zeros_(p)
        for layer in self.layers:
            into_stream = [layer.self_attn.o_proj.weight]
            if isinstance(layer.mlp, MoE):
                into_stream += [layer.mlp.down, layer.mlp.shared_experts.down_proj.weight]
            else:
                into_stream += [layer.mlp.down_proj.weight]
            for p in into_stream:
                nn.init.normal_(p, std=0.02 / (2 * s.layers) ** 0.5)

    def experts(self):
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, MoE)]

    def set_dropout(self, share):
        for layer in self.layers:
            layer.dropout = share

    def set_quantised(self, on):
        for moe in self.experts():
            moe.quantised = on

    def hidden(self, rows):
        x = self.embed_tokens(rows.ids)
        # one angle for all heads of a token
        rotation = self.cos[rows.position, None], self.sin[rows.position, None]
        for layer in self.layers:
            x = layer(x, rotation, rows.rectangles, rows.back)
        return self.norm(x)

    def forward(self, rows):
        return self.lm_head(self.hidden(rows))
