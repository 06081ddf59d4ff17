#!/usr/bin/env python3
"""Makes the traces in tests/bench/traces: what a card holds while models are served, event by event.

usage: make-traces.py DIR    writes DIR/NAME.trace for each; the same bytes every time

A trace says which bytes live how long, and nothing of who allocates them. Lines:

    trace NAME
    kind K CLASS OWNER NAME BYTES [MAX]
        a kind of object. CLASS w: a tensor of model OWNER's weights, there as long as the model
        is; k: a page of its KV cache; t: a buffer of one forward pass, BYTES for each of at most
        MAX rows; l: memory that another process has taken (a lease), BYTES a MiB
    +K      an object of kind K is there; objects are numbered from 0 as they come
    +K*N    one of N times the bytes (classes t and l)
    +KxN    N objects, one after another
    -A      object A is gone
    -A-B    objects A, A + 1, ... B are gone, in this order

A KV page is freed alone, in the order in which requests end and caches are evicted, least recently
used first. Nothing here is drawn from a source that differs between machines.
"""
import pathlib
import sys

MIB = 1 << 20
CHUNK_TOKENS = 2048  # of a prompt, computed in one pass
PAGE_TOKENS = 64
PROMPTS = (64, 120, 200, 350, 500, 700, 900, 1200, 1500, 1900, 2500, 3300, 4500, 6500, 10000, 20000, 50000)
ANSWERS = (16, 40, 80, 120, 180, 250, 350, 500, 700, 1000, 1500, 2500)


class Random:
    def __init__(self, seed):
        self.x = seed * 0x9E3779B97F4A7C15 % (1 << 64) or 1

    def below(self, n):
        self.x ^= self.x >> 12
        self.x = (self.x ^ self.x << 25) % (1 << 64)
        self.x ^= self.x >> 27
        return (self.x * 0x2545F4914F6CDD1D % (1 << 64) >> 33) % n

    def between(self, table):
        """Even between two neighbours of a table, which are its quantiles."""
        i = self.below(len(table) - 1)
        return table[i] + self.below(table[i + 1] - table[i])


class Shape:
    """What matters of a model: layers, sizes, experts (0: dense), head tied to the embedding or not."""

    def __init__(self, layers, dim, ffn, heads, kv_heads, head_dim, vocab, tied, experts=0, top_k=0, moe_ffn=0):
        self.__dict__.update(locals())

    def tensors(self):
        s, qkv = self, (self.heads + 2 * self.kv_heads) * self.head_dim
        yield "embed", s.vocab * s.dim * 2
        for layer in range(s.layers):
            yield "norm", s.dim * 2
            yield "qkv", qkv * s.dim * 2
            yield "o", s.heads * s.head_dim * s.dim * 2
            yield "norm", s.dim * 2
            if s.experts == 0 or layer == 0:
                yield "gate_up", 2 * s.ffn * s.dim * 2
                yield "down", s.ffn * s.dim * 2
                continue
            yield "router", s.experts * s.dim * 2
            for name, rows, columns in ("experts_gate_up", 2 * s.moe_ffn, s.dim), ("experts_down", s.dim, s.moe_ffn):
                yield name, s.experts * rows * columns // 2
                yield name + "_scales", s.experts * rows * columns // 32 * 2
            yield "shared_gate_up", 2 * s.moe_ffn * s.dim * 2
            yield "shared_down", s.moe_ffn * s.dim * 2
        yield "norm", s.dim * 2
        if not s.tied:
            yield "head", s.vocab * s.dim * 2

    def page_bytes(self):
        return self.layers * 2 * self.kv_heads * PAGE_TOKENS * self.head_dim * 2

    def weight_bytes(self):
        return sum(n for _, n in self.tensors())


AIR = Shape(46, 4096, 10944, 96, 8, 128, 151552, False, 128, 8, 1408)
B14 = Shape(40, 5120, 17408, 40, 8, 128, 151936, False)
B8 = Shape(36, 4096, 12288, 32, 8, 128, 151936, False)
B4 = Shape(36, 2560, 9728, 32, 8, 128, 151936, True)
B2 = Shape(28, 2048, 6144, 16, 8, 128, 151936, True)


class Trace:
    def __init__(self, name):
        self.head, self.body = [f"trace {name}"], []
        self.kinds, self.n = {}, 0

    def kind(self, cls, owner, name, size, most=None):
        key = cls, owner, name, size
        if key not in self.kinds:
            self.kinds[key] = len(self.kinds)
            self.head.append(f"kind {self.kinds[key]} {cls} {owner} {name} {size}" + (f" {most}" if most else ""))
        return self.kinds[key]

    def add(self, kind, times=1, count=1):
        first = self.n
        self.n += count
        self.body.append(f"+{kind}" + (f"*{times}" if times > 1 else "") + (f"x{count}" if count > 1 else ""))
        return list(range(first, self.n))

    def drop(self, objects):
        i = 0
        while i < len(objects):
            j = i
            while j + 1 < len(objects) and objects[j + 1] == objects[j] + 1:
                j += 1
            self.body.append(f"-{objects[i]}" + (f"-{objects[j]}" if j > i else ""))
            i = j + 1

    def text(self):
        return "\n".join(self.head + self.body) + "\n"


class Sequence:
    def __init__(self):
        self.pages, self.tokens, self.prefill, self.answer, self.used = [], 0, 0, 0, 0


class Model:
    """One model being served: a pass a tick, prompts in chunks, answers growing by a page a tick."""

    def __init__(self, trace, owner, shape, random, cap_bytes):
        self.t, self.owner, self.shape, self.random = trace, owner, shape, random
        self.page = trace.kind("k", owner, "page", shape.page_bytes())
        self.weights, self.to_load = [], []
        self.running, self.waiting, self.cached = [], [], []
        self.clock = 0
        self.set_cap(cap_bytes)

    def load(self):
        """All tensors, one after another."""
        while self.load_some(1 << 62):
            pass

    def load_some(self, size):
        """Tensors of about so many bytes; false when all are there."""
        if not self.to_load and not self.weights:
            self.to_load = list(self.shape.tensors())
        while self.to_load and size > 0:
            name, n = self.to_load.pop(0)
            self.weights += self.t.add(self.t.kind("w", self.owner, name, n))
            size -= n
        return bool(self.to_load)

    def unload(self):
        assert not self.n_pages()
        self.t.drop(self.weights)
        self.weights = []

    def n_pages(self):
        return sum(len(s.pages) for s in self.running + self.cached)

    def set_cap(self, size):
        self.cap = size // self.shape.page_bytes()

    def shrink(self, size):
        """Less KV cache, as soon as the requests under way leave so much."""
        waiting, self.waiting = self.waiting, []
        while self.promised() > size // self.shape.page_bytes():
            self.tick()
        self.waiting = waiting
        self.set_cap(size)
        assert self.evict(0)

    def promised(self):
        """Pages that the requests under way will have at most."""
        return sum((s.tokens + s.prefill + s.answer) // PAGE_TOKENS + 1 for s in self.running)

    def evict(self, room):
        """Until so many pages may be taken: the end of what was used longest ago. False if that is not enough."""
        while self.n_pages() + room > self.cap:
            if not self.cached:
                return False
            s = min(self.cached, key=lambda s: s.used)
            n = min(len(s.pages), self.n_pages() + room - self.cap)
            self.t.drop(s.pages[-n:])
            del s.pages[-n:]
            s.tokens = min(s.tokens, len(s.pages) * PAGE_TOKENS)
            if not s.pages:
                self.cached.remove(s)
        return True

    def forget(self, percent):
        """Cached pages of so many in a hundred sequences go, whichever."""
        for s in list(self.cached):
            if self.random.below(100) < percent:
                self.t.drop(s.pages)
                self.cached.remove(s)

    def ask(self, prompt, answer, again=40):
        """A request; so many in a hundred go on with a conversation that is cached."""
        self.waiting.append((prompt, answer, self.random.below(100) < again))

    def begin(self):
        while self.waiting:
            prompt, answer, again = self.waiting[0]
            s = self.cached[self.random.below(len(self.cached))] if again and self.cached else Sequence()
            pages = (s.tokens + prompt + answer) // PAGE_TOKENS + 1
            if self.promised() + pages > self.cap:
                if not self.running:
                    self.waiting.pop(0)  # never fits
                    continue
                return
            self.waiting.pop(0)
            if s in self.cached:
                self.cached.remove(s)
            s.prefill, s.answer = prompt, answer
            self.running.append(s)

    def grow(self, s, tokens):
        s.tokens += tokens
        n = (s.tokens + PAGE_TOKENS - 1) // PAGE_TOKENS - len(s.pages)
        if n > 0:
            assert self.evict(n)
            s.pages += self.t.add(self.page, count=n)

    def forward(self, rows, out):
        """The buffers of one pass in the order of a layer, freed as soon as they were read."""
        s, t = self.shape, self.t

        def buffer(name, size, n=rows, most=CHUNK_TOKENS + 64):
            return t.add(t.kind("t", self.owner, name, size, most), n)

        hidden, norm = buffer("hidden", s.dim * 2), buffer("norm", s.dim * 2)
        qkv = buffer("qkv", (s.heads + 2 * s.kv_heads) * s.head_dim * 2)
        t.drop(norm)
        attention = buffer("attention", s.heads * s.head_dim * 2)
        t.drop(qkv)
        o = buffer("o", s.dim * 2)
        t.drop(attention)
        norm = buffer("norm", s.dim * 2)
        width = s.top_k * s.moe_ffn if s.experts else s.ffn
        scores = buffer("scores", s.experts * 4) if s.experts else []
        both = buffer("gate_up", 2 * width * 2)
        act = buffer("activated", width * 2)
        t.drop(both)
        down = buffer("down", (s.top_k if s.experts else 1) * s.dim * 2)
        t.drop(act)
        t.drop(down)
        t.drop(scores)
        t.drop(norm)
        t.drop(o)
        if out:
            logits = buffer("logits", s.vocab * 4, out, 64)
            t.drop(logits)
        t.drop(hidden)

    def tick(self):
        self.clock += 1
        self.begin()
        rows = out = 0
        for s in list(self.running):
            s.used = self.clock
            if s.prefill:
                n = min(s.prefill, CHUNK_TOKENS - rows)
                if n <= 0:
                    continue
                self.grow(s, n)
                s.prefill -= n
                rows += n
                out += s.prefill == 0
                continue
            n = min(s.answer, PAGE_TOKENS)
            self.grow(s, n)
            s.answer -= n
            rows, out = rows + 1, out + 1
            if s.answer == 0:
                self.running.remove(s)
                self.cached.append(s)
        if rows:
            self.forward(rows, out)

    def busy(self):
        return self.running or self.waiting

    def finish(self):
        while self.busy():
            self.tick()

    def leave(self):
        """Everything of it goes: requests end, caches are dropped, then the weights."""
        self.finish()
        self.forget(100)
        self.unload()


def gib(n):
    return int(n * 1024) * MIB


def arrive(model, random, percent):
    if random.below(100) < percent:
        model.ask(random.between(PROMPTS), random.between(ANSWERS))


def steady(t, r):
    m = Model(t, 0, AIR, r, gib(20))
    m.load()
    for _ in range(300):
        arrive(m, r, 70)
        m.tick()


def bursts(t, r):
    m = Model(t, 0, AIR, r, gib(20))
    m.load()
    for _ in range(6):
        for _ in range(12 + r.below(12)):
            m.ask(r.between(PROMPTS), r.between(ANSWERS))
        m.finish()
        m.forget(75)
        for _ in range(10):
            arrive(m, r, 30)
            m.tick()


def growth(t, r):
    """The card fills with models; those that are there give up KV cache for each that comes."""
    total, models = gib(80), []
    for owner, shape in enumerate((B2, B4, B8, B14)):
        resident = sum(m.shape.weight_bytes() for m in models) + shape.weight_bytes()
        room = (total - resident) // (len(models) + 1)
        new = Model(t, owner, shape, r, room)
        for m in models:
            m.shrink(room)
        while new.load_some(gib(0.5)):
            for m in models:
                arrive(m, r, 40)
                m.tick()
        models.append(new)
        for _ in range(45):
            for m in models:
                arrive(m, r, 60)
                m.tick()


def sizes(t, r):
    """Four models at once, of other page sizes and buffers; what they have of the KV cache drifts."""
    models = [Model(t, i, s, r, gib(6)) for i, s in enumerate((B2, B4, B8, B14))]
    for m in models:
        m.load()
    for _ in range(8):
        shares = [1 + r.below(8) for _ in models]
        for m, share in sorted(zip(models, shares), key=lambda p: p[1] * 100 // p[0].cap):
            m.shrink(gib(30) * share // sum(shares))
        for _ in range(20):
            for m, share in zip(models, shares):
                arrive(m, r, 15 * share)
                m.tick()


def sleep(t, r):
    """Two large ones take turns, one asleep; a small one is never asked to stop."""
    small = Model(t, 0, B4, r, gib(6))
    small.load()
    for turn in range(4):
        m = Model(t, 1 + turn % 2, (AIR, B14)[turn % 2], r, gib((10, 46)[turn % 2]))
        while m.load_some(gib(2)):
            arrive(small, r, 60)
            small.tick()
        for _ in range(45):
            arrive(m, r, 80)
            arrive(small, r, 50)
            m.tick()
            small.tick()
        m.leave()
        for _ in range(5):
            small.tick()


def leases(t, r):
    """Another process takes memory for a while; KV pages go for it, least recently used first."""
    m = Model(t, 0, AIR, r, gib(24))
    m.load()
    for _ in range(10):
        for _ in range(20):
            arrive(m, r, 80)
            m.tick()
        mib = 1024 * (2 + r.below(15))
        m.shrink(gib(24) - mib * MIB)
        lease = t.add(t.kind("l", 9, "lease", MIB), mib)
        for _ in range(8):
            arrive(m, r, 80)
            m.tick()
        t.drop(lease)
        m.set_cap(gib(24))


def adversarial(t, r):
    """The worst order for lists of free blocks, then for groups of pages, then for rounding."""
    air, four = (t.kind("k", i, "page", s.page_bytes()) for i, s in enumerate((AIR, B4)))
    a, b = [], []
    for _ in range(1600):  # pages of two sizes by turns
        a += t.add(air)
        b += t.add(four)
    t.drop(b[::2])  # every other one of the smaller goes, then the rest
    t.drop(b[1::2])
    big = Model(t, 2, B4, r, 0)
    big.load()  # tensors larger than any hole
    lone = [t.add(t.kind("k", 3 + i, "page", s.page_bytes())) for i, s in enumerate((AIR, B14, B8, B2))]
    t.drop([p for i, p in enumerate(a) if i % 4 != 1])  # one page in four stays
    lease = t.add(t.kind("l", 9, "lease", MIB), 24 * 1024)
    b = t.add(four, count=200)
    sizes = [MIB + 512, 10 * MIB - 512, 10 * MIB + 512, 64 * MIB + 512, 512 * MIB - 512]
    for _ in range(3):  # a little over what others round to
        buffers = [t.add(t.kind("t", 2, f"buffer{n}", n, 1)) for n in sizes]
        for x in buffers[::2] + buffers[1::2]:
            t.drop(x)
    t.drop(lease)
    again = Model(t, 7, B14, r, 0)
    again.load()
    for m in again, big:
        t.drop(m.weights)
    t.drop(b)
    for x in lone:
        t.drop(x)
    t.drop(a[1::4])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[1])
    made = steady, bursts, growth, sizes, sleep, leases, adversarial
    for i, make in enumerate(made):
        t = Trace(make.__name__)
        make(t, Random(1000 + i))
        pathlib.Path(sys.argv[1], f"{make.__name__}.trace").write_text(t.text())


if __name__ == "__main__":
    main()
