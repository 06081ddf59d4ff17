"""Conversations to token ids, in the layout of GLM-4.5's template, and the tokenizer's making."""
import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

SPECIAL = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>",
           "<|user|>", "<|assistant|>", "<|observation|>", "<|begin_of_image|>",
           "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|begin_of_audio|>",
           "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>",
           "<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>", "/nothink"]
ADDED = SPECIAL[:-1] + ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>",
                        "</tool_response>", "<arg_key>", "</arg_key>", "<arg_value>",
                        "</arg_value>", "/nothink", "<|begin_of_box|>", "<|end_of_box|>",
                        "<|image|>", "<|video|>"]
ENDS = ["<|endoftext|>", "<|user|>", "<|observation|>"]


def make_tokenizer(texts, n_base, path):
    """Learns byte-level BPE from @texts and writes tokenizer.json and its config to @path."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=n_base, show_progress=False, min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    data = json.loads(t.to_str())
    n_base = len(data["model"]["vocab"])
    data["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False,
                              "trim_offsets": False, "use_regex": False}
    data["added_tokens"] = [
        {"id": n_base + i, "content": token, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": token in SPECIAL}
        for i, token in enumerate(ADDED)]
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(
        json.dumps(data, ensure_ascii=False, indent=0) + "\n")
    (path / "tokenizer_config.json").write_text(json.dumps({
        "added_tokens_decoder": {str(a["id"]): {k: v for k, v in a.items() if k != "id"}
                                 for a in data["added_tokens"]},
        "additional_special_tokens": SPECIAL,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "padding_side": "left",
        "model_max_length": 4096, "tokenizer_class": "PreTrainedTokenizerFast",
    }, indent=1) + "\n")


class Coder:
    def __init__(self, path):
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.marker = {token: self.tokenizer.token_to_id(token) for token in ADDED}
        # text of a conversation is encoded without recognising any added token
        plain = json.loads((path / "tokenizer.json").read_text())
        plain["added_tokens"] = []
        self.plain = Tokenizer.from_str(json.dumps(plain))
        self.size = self.tokenizer.get_vocab_size()
        self.known = {}

    def encode(self, text):
        ids = self.known.get(text)
        if ids is None:
            ids = self.plain.encode(text).ids
            if len(self.known) < 200000:
                self.known[text] = ids
        return ids

    def eos(self):
        return [self.marker[token] for token in ENDS]

    def conversation(self, turns, system=None, think=True):
        """
        The ids of a conversation and what each is: 0 given, 1 a user's words, 2 what is
        to be learnt. @turns: (question, thought, answer) each; thoughts of all but the
        last turn are dropped, as the template does.
        """
        ids, kinds = [], []

        def put(more, kind):
            ids.extend(more)
            kinds.extend([kind] * len(more))

        m = self.marker
        put([m["[gMASK]"], m["<sop>"]], 0)
        if system is not None:
            put([m["<|system|>"]], 0)
            put(self.encode("\n" + system), 0)
        for i, (question, thought, answer) in enumerate(turns):
            put([m["<|user|>"]], 0 if i == 0 else 2)
            put(self.encode("\n" + question), 1)
            if not think:
                put([m["/nothink"]], 0)
            put([m["<|assistant|>"]], 0)
            if think and i == len(turns) - 1:
                put(self.encode("\n"), 2)
                put([m["<think>"]], 2)
                if thought:
                    put(self.encode(thought), 2)
                put([m["</think>"]], 2)
            else:
                put(self.encode("\n"), 0)
                put([m["<think>"], m["</think>"]], 0)
            put(self.encode("\n" + answer), 2)
        put([m["<|user|>"]], 2)
        return ids, kinds
