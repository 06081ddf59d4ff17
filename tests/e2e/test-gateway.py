#!/usr/bin/env python3
"""The gateway as programs see it: routes, answers, streams, refusals."""
from gatewayhttp import *
from steamd_e2e import *


def the_plain_routes_answer():
    with Daemon("air", "ModelAliases=small other") as d, Gateway(d) as g:
        assert g.get("/health").json() == {"status": "ok"}
        assert g.get("/ready").json() == {"status": "ready"}
        models = g.get("/v1/models").json()
        assert models["object"] == "list" and [m["id"] for m in models["data"]] == ["air", "small", "other"], models
        assert g.get("/v1/models/small").json()["max_model_len"] == 65536
        ids = json.loads(d.ctl("tokenize", "--json", stdin=b"one two<|user|>"))["ids"]
        assert g.post("/tokenize", {"prompt": "one two<|user|>"}).json() == {"tokens": ids, "count": len(ids)}
        plain = json.loads(d.ctl("tokenize", "--json", "--no-special", stdin=b"<|user|>"))["ids"]
        got = g.post("/tokenize", {"prompt": "<|user|>", "add_special_tokens": False})
        assert got.json()["tokens"] == plain and len(plain) > 1
        assert g.post("/detokenize", {"tokens": ids}).json() == {"prompt": "one two<|user|>"}
        got = g.post("/detokenize", {"tokens": ids, "skip_special_tokens": True})
        assert got.json() == {"prompt": "one two"}
        for path, status in (("/v1/models/none", 404), ("/v1/nothing", 404), ("/v1/models/a/b", 404)):
            assert g.get(path).status == status, path
        assert g.post("/health", {}).status == 405 and g.get("/v1/chat/completions").status == 405
        refused = g.post("/v1/embeddings", {"input": "x"})
        assert refused.status == 400 and refused.error()["code"] == "no-embeddings"
        head = g.send("HEAD", "/v1/models")
        assert head.status == 200 and head.body == b""


def metrics_count_what_was_done():
    with Daemon("air") as d, Gateway(d) as g:
        usage = chat(g, ignore_eos=True).json()["usage"]
        chat(g, bad=1)
        lines = dict(line.rsplit(" ", 1) for line in g.get("/metrics").body.decode().splitlines()
                     if not line.startswith("#"))
        assert lines["steamd_gateway_tokens_total"] == "8" == lines["steamd_completion_tokens_total"], lines
        assert lines["steamd_gateway_prompt_tokens_total"] == str(usage["prompt_tokens"])
        assert lines['steamd_gateway_responses_total{class="4xx"}'] == "1"
        assert lines["steamd_up"] == lines["steamd_ready"] == "1" == lines["steamd_gateway_connections"]


def a_chat_is_what_steamctl_gets():
    with Daemon("air") as d, Gateway(d) as g:
        want = d.lines("ask", "--json", "--seed", 7, "-n", 8, "Hello there")[-1]
        got = chat(g, seed=7).json()
        assert got["object"] == "chat.completion" and got["id"].startswith("chatcmpl-") and got["model"] == "air"
        [choice] = got["choices"]
        assert choice["message"]["content"] == want["content"] and choice["message"]["role"] == "assistant"
        assert choice["finish_reason"] == want["finish"] == "length" and choice["logprobs"] is None
        usage = got["usage"]
        assert usage["prompt_tokens"] == want["usage"]["prompt_tokens"] and usage["completion_tokens"] == 8
        assert usage["total_tokens"] == usage["prompt_tokens"] + 8


def a_stream_says_what_the_whole_says():
    with Daemon("air") as d, Gateway(d) as g:
        whole = chat(g, seed=7).json()
        got = chunks(g, "/v1/chat/completions", messages=HELLO, max_tokens=8, seed=7,
                     stream_options={"include_usage": True})
        assert all(c["object"] == "chat.completion.chunk" and c["id"] == got[0]["id"] for c in got)
        assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in got[:-1])
        assert text == whole["choices"][0]["message"]["content"]
        assert got[-2]["choices"][0]["finish_reason"] == "length" and got[-2]["choices"][0]["delta"] == {}
        assert got[-1]["choices"] == [] and got[-1]["usage"]["completion_tokens"] == 8
        assert all(c["usage"] is None for c in got[:-1])
        assert all("usage" not in c for c in chunks(g, "/v1/chat/completions", messages=HELLO, max_tokens=2))


def text_prompts_of_all_kinds_are_continued():
    with Daemon("air") as d, Gateway(d) as g:
        def complete(prompt, **fields):
            return g.post("/v1/completions", {"prompt": prompt, "max_tokens": 6, "seed": 3, **fields}).json()

        want = d.lines("complete", "--json", "--seed", 3, "-n", 6, "Once upon")[-1]["content"]
        one = complete("Once upon")
        assert one["object"] == "text_completion" and one["choices"][0]["text"] == want
        ids = g.post("/tokenize", {"prompt": "Once upon"}).json()["tokens"]
        assert complete(ids)["choices"][0]["text"] == want
        two = complete(["Once upon", "Twice"], n=2)["choices"]
        assert [c["index"] for c in two] == [0, 1, 2, 3] and two[0]["text"] == want
        assert len({c["text"] for c in two}) > 2
        assert complete([ids, ids])["choices"][0]["text"] == want
        assert complete("Once upon", echo=True)["choices"][0]["text"] == "Once upon" + want
        got = chunks(g, "/v1/completions", prompt="Once upon", max_tokens=6, seed=3, echo=True)
        assert "".join(c["choices"][0]["text"] for c in got) == "Once upon" + want
        for wrong, param in (({"prompt": {}}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({}, "prompt"),
                             ({"prompt": "a", "suffix": "b"}, "suffix"), ({"prompt": [1], "echo": True}, "echo"),
                             ({"prompt": "a", "best_of": 3}, "best_of")):
            got = g.post("/v1/completions", wrong)
            assert got.status == 400 and got.error()["param"] == param, (wrong, got.body)


def every_sampler_reaches_steamd():
    with Daemon("air") as d, Gateway(d) as g:
        flags = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1,
                 "frequency_penalty": 0.5, "presence_penalty": 0.2, "seed": 11}
        args = [x for k, v in flags.items() for x in ("--" + k.replace("_", "-"), v)]
        want = d.lines("complete", "--json", "-n", 24, "--logit-bias", "65=4", *args, "Once upon")[-1]["content"]
        got = g.post("/v1/completions", {"prompt": "Once upon", "max_tokens": 24, "logit_bias": {"65": 4}, **flags})
        assert got.json()["choices"][0]["text"] == want
        for name in flags:
            without = {k: v for k, v in flags.items() if k != name}
            if name not in ("top_p", "top_k"):  # these two cut what min_p has cut already
                other = g.post("/v1/completions", {"prompt": "Once upon", "max_tokens": 24, "logit_bias": {"65": 4},
                                                   **without}).json()["choices"][0]["text"]
                assert other != want or name in ("frequency_penalty", "presence_penalty"), name
        # the other routes take the same: a change of each one changes what steamctl says in the same way
        every = {**flags, "top_k": 5, "top_p": 0.5, "logit_bias": {"65": 4}, "ignore_eos": True}
        for name in [None] if SANITIZED else [*every, None]:
            fields = {k: v for k, v in every.items() if k != name}
            args = [x for k, v in fields.items() if k not in ("logit_bias", "ignore_eos")
                    for x in ("--" + k.replace("_", "-"), v)]
            args += ["--logit-bias", "65=4"] if "logit_bias" in fields else []
            args += ["--ignore-eos"] if "ignore_eos" in fields else []
            if name == "seed":
                continue
            want = d.lines("ask", "--json", "-n", 24, *args, "Hello there")[-1]["content"]
            got = [chat(g, max_tokens=24, **fields).json()["choices"][0]["message"]["content"],
                   chat(g, max_tokens=1, max_completion_tokens=24, **fields).json()["choices"][0]["message"]["content"],
                   g.post("/v1/responses", {"input": "Hello there", "max_output_tokens": 24, "store": False, **fields}
                          ).json()["output"][0]["content"][0]["text"]]
            assert got == [want] * 3, (name, want, got)
        first = g.post("/v1/completions", {"prompt": "Once upon", "max_tokens": 24, "seed": 3}).json()
        text = first["choices"][0]["text"]
        cut = g.post("/v1/completions", {"prompt": "Once upon", "max_tokens": 24, "seed": 3, "stop": [text[4:8]]}).json()
        assert cut["choices"][0]["text"] == text[:text.index(text[4:8])]
        assert cut["choices"][0]["finish_reason"] == "stop"


def logprobs_are_those_of_steamctl():
    with Daemon("air") as d, Gateway(d) as g:
        want = d.lines("complete", "--json", "--seed", 3, "-n", 6, "--top", 3, "Once upon")
        logprobs = [x for line in want for x in line.get("logprobs", [])]
        tops = [x for line in want for x in line.get("top", [])]
        got = g.post("/v1/completions", {"prompt": "Once upon", "max_tokens": 6, "seed": 3, "logprobs": 3}).json()
        lists = got["choices"][0]["logprobs"]
        assert [len(lists[k]) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [6] * 4
        assert all(abs(a - b) < 1e-5 for a, b in zip(lists["token_logprobs"], logprobs)), (lists, logprobs)
        beyond_ascii = 0
        for seed in range(5):  # offsets are those of characters
            body = {"prompt": "Once upon", "max_tokens": 12, "seed": seed, "logprobs": 0, "ignore_eos": True}
            choice = g.post("/v1/completions", body).json()["choices"][0]
            text, lists = choice["text"], choice["logprobs"]
            streamed = [c["choices"][0]["logprobs"] for c in chunks(g, "/v1/completions", **body)]
            assert [at for one in streamed if one for at in one["text_offset"]] == lists["text_offset"]
            for token, at in zip(lists["tokens"], lists["text_offset"]):
                if "\ufffd" in token:
                    break
                assert text[at:].startswith(token), (token, at, text, lists)
                beyond_ascii += not text[:at].isascii()
        assert beyond_ascii
        assert abs(max(got["choices"][0]["logprobs"]["top_logprobs"][0].values()) - tops[0][0][1]) < 1e-5
        # with this seed none of the random model's tokens is a special one, of which there is no text
        streamed = chunks(g, "/v1/chat/completions", messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=2, seed=7)
        entries = [e for c in streamed for e in ((c["choices"][0]["logprobs"] or {}).get("content") or [])]
        assert len(entries) == 6 and all(len(e["top_logprobs"]) == 2 for e in entries)
        raw = bytes(b for e in entries for b in e["bytes"])
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in streamed)
        assert raw.decode(errors="replace") == text, (raw, text)
        got = chat(g, top_logprobs=2)
        assert got.status == 400 and got.error()["param"] == "top_logprobs"


def several_choices_share_one_prompt():
    with Daemon("air") as d, Gateway(d) as g:
        long = [{"role": "user", "content": "word " * 400}]
        got = chat(g, long, n=8, seed=5).json()
        assert [c["index"] for c in got["choices"]] == list(range(8))
        assert len({c["message"]["content"] for c in got["choices"]}) > 4
        assert got["usage"]["completion_tokens"] == 64 and got["usage"]["prompt_tokens"] < 450
        # eight prompts were asked; what is computed is one, and of the others a part of a page
        status = d.status()
        n_prompt, page = got["usage"]["prompt_tokens"], status["kv"]["page_tokens"]
        assert status["prompt_tokens"] == 8 * n_prompt
        computed = status["prompt_tokens"] - status["kv"]["found_tokens"]
        assert n_prompt <= computed <= n_prompt + 7 * page < 3 * n_prompt, (computed, n_prompt, status["kv"])
        refused = chat(g, n=9)
        assert refused.status == 400 and refused.error()["param"] == "n"


def the_second_turn_of_a_client_that_sends_all_again_is_a_hit():
    with Daemon("air", "ChatTemplate=glm47") as d, Gateway(d) as g:
        said = chat(g, [{"role": "user", "content": "word " * 100}], max_tokens=40, seed=4, reasoning_effort="none",
                    ignore_eos=True).json()
        answer = said["choices"][0]["message"]
        again = [{"role": "user", "content": "word " * 100}, {"role": "assistant", "content": answer["content"]},
                 {"role": "user", "content": "And now?"}]
        usage = chat(g, again, reasoning_effort="none").json()["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached >= said["usage"]["prompt_tokens"], (said["usage"], usage)
        # and it is what the broker counted
        found = d.status()["kv"]["found_tokens"]
        usages = [chat(g, again, reasoning_effort="none").json()["usage"],
                  chunks(g, "/v1/chat/completions", messages=again, max_tokens=2, reasoning_effort="none",
                         stream_options={"include_usage": True})[-1]["usage"]]
        told = sum(u["prompt_tokens_details"]["cached_tokens"] for u in usages)
        assert told == d.status()["kv"]["found_tokens"] - found > 0, (told, usages)


def roles_and_parts_are_what_they_say():
    with Daemon("air", "ChatTemplate=glm47") as d, Gateway(d) as g:
        def answer(*messages):
            got = chat(g, list(messages), seed=1, ignore_eos=True).json()
            return got["choices"][0]["message"], got["usage"]["prompt_tokens"]

        system, user = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello there"}
        parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
        want = answer(system, user)
        assert answer({"role": "developer", "content": "Be brief"}, user) == want
        assert answer(system, {"role": "user", "content": parts}) == want != answer(user)
        assert answer(user, {"role": "assistant", "content": "Yes"}, user)[1] > answer(user, user)[1]


def a_call_that_was_cut_off_says_so():
    with Daemon("air", "ChatTemplate=glm45") as d, Gateway(d) as g:
        fields, n_cut = {**calling(d, g)[0], "parallel_tool_calls": False}, 0
        for fields["seed"] in range(16):
            got = chat(g, **fields).json()
            said, n = got["choices"][0], got["usage"]["completion_tokens"]
            if said["message"].get("tool_calls") and n == fields["max_tokens"]:
                assert said["finish_reason"] == "length", said
                n_cut += 1
        assert n_cut


def reasoning_is_told_apart():
    with Daemon("air", "ChatTemplate=glm47") as d, Gateway(d) as g:
        got = chat(g, ignore_eos=True, seed=1, reasoning_effort="high").json()
        message = got["choices"][0]["message"]
        assert message["reasoning_content"] and message["content"] == "", message
        assert got["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
        for off in ({"reasoning_effort": "none"}, {"reasoning": {"effort": "minimal"}}, {"enable_thinking": False},
                    {"chat_template_kwargs": {"enable_thinking": False}}, {"thinking": {"type": "disabled"}}):
            message = chat(g, ignore_eos=True, seed=1, **off).json()["choices"][0]["message"]
            assert "reasoning_content" not in message and message["content"], (off, message)
        streamed = chunks(g, "/v1/chat/completions", messages=HELLO, max_tokens=8, ignore_eos=True, seed=1)
        assert any("reasoning_content" in c["choices"][0]["delta"] for c in streamed)
        assert chat(g, reasoning_effort="much").error()["param"] == "reasoning_effort"


TOOLS = [{"type": "function", "function": {"name": "get", "description": "x", "parameters": {
    "type": "object", "properties": {"zip": {"type": "string"}}}}}]


def calling(d, g):
    """Fields that make a random model call something, and what it then says; not every seed does."""
    call = json.loads(d.ctl("tokenize", "--json", stdin=b"<tool_call>"))["ids"][0]
    end = json.loads(d.ctl("tokenize", "--json", stdin=b"</tool_call>"))["ids"][0]
    fields = {"max_tokens": 100, "logit_bias": {str(call): 5, str(end): 6}, "tools": TOOLS}
    found = None
    for seed in range(16):
        said = chat(g, seed=seed, **fields).json()["choices"][0]
        n = len(said["message"].get("tool_calls", []))
        if n > 0 and (n > 1 or not found):
            found = {**fields, "seed": seed}, said
        if n > 1:  # two calls in one answer are better to look at
            break
    assert found, "no seed calls anything"
    return found


def tools_are_called_and_answered():
    with Daemon("air", "ChatTemplate=glm45") as d, Gateway(d) as g:
        fields, said = calling(d, g)
        calls = said["message"]["tool_calls"]
        assert said["finish_reason"] in ("tool_calls", "length"), said
        assert all(c["type"] == "function" and c["id"].startswith("call_") for c in calls)
        assert len({c["id"] for c in calls}) == len(calls)
        assert all(isinstance(json.loads(c["function"]["arguments"]), dict) for c in calls)
        built = {}
        for chunk in chunks(g, "/v1/chat/completions", messages=HELLO, **fields):
            for part in chunk["choices"][0]["delta"].get("tool_calls", []):
                one = built.setdefault(part["index"], {"name": "", "arguments": ""})
                one["id"] = part.get("id", one.get("id"))
                for key, value in part["function"].items():
                    one[key] += value
        assert sorted(built) == list(range(len(calls)))
        assert [(b["name"], b["arguments"]) for _, b in sorted(built.items())] == [
            (c["function"]["name"], c["function"]["arguments"]) for c in calls]
        one = chat(g, parallel_tool_calls=False, **fields).json()["choices"][0]
        assert len(one["message"]["tool_calls"]) == 1 and one["finish_reason"] in ("tool_calls", said["finish_reason"])
        again = HELLO + [said["message"]] + [
            {"role": "tool", "tool_call_id": c["id"], "content": [{"type": "text", "text": "sunny"}]} for c in calls]
        got = chat(g, again, tools=TOOLS).json()
        assert got["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, got["usage"]
        without = chat(g, tools=TOOLS, tool_choice="none").json()["usage"]["prompt_tokens"]
        assert without == chat(g).json()["usage"]["prompt_tokens"]
        # the same over Responses, whose tools have another form
        body = {"input": "Hello there", "max_output_tokens": 100, "seed": fields["seed"],
                "logit_bias": fields["logit_bias"], "tools": [{"type": "function", **TOOLS[0]["function"]}]}
        made = g.post("/v1/responses", body).json()
        found = [i for i in made["output"] if i["type"] == "function_call"]
        assert [(i["name"], i["arguments"]) for i in found] == [
            (c["function"]["name"], c["function"]["arguments"]) for c in calls]
        shown = g.get(f"/v1/responses/{made['id']}").json()["output"]
        # what stood between calls is stored as one text before them
        assert [i for i in shown if i["type"] == "function_call"] == found
        texts = ["".join(p["text"] for i in o if i["type"] == "message" for p in i["content"])
                 for o in (shown, made["output"])]
        assert texts[0] == texts[1], texts
        outputs = [{"type": "function_call_output", "call_id": i["call_id"], "output": "sunny"} for i in found]
        got = g.post("/v1/responses", {"input": outputs, "previous_response_id": made["id"], "max_output_tokens": 4})
        assert got.status == 200 and got.json()["usage"]["input_tokens_details"]["cached_tokens"] > 0, got.body
        kinds = [n for n, _ in g.events("/v1/responses", {**body, "stream": True})]
        at = kinds.index("response.function_call_arguments.delta")
        assert kinds[at - 1:at + 3] == ["response.output_item.added", "response.function_call_arguments.delta",
                                        "response.function_call_arguments.done", "response.output_item.done"]


def bad_requests_name_the_field():
    cases = [({"sed": 1}, "sed"), ({"temperature": "hot"}, "temperature"), ({"temperature": 101}, "temperature"),
             ({"top_p": 1.5}, "top_p"), ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"),
             ({"stop": [""]}, "stop"), ({"stop": ["x"] * 17}, "stop"), ({"logit_bias": {"x": 1}}, "logit_bias"),
             ({"stream": 1}, "stream"), ({"messages": []}, "messages"), ({"messages": "x"}, "messages"),
             ({"messages": [{"role": "robot", "content": ""}]}, "messages[0]"),
             ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
              "messages[0].content[0]"),
             ({"messages": [{"role": "user"}]}, "messages[0]"), ({"tools": {}}, "tools"),
             ({"tools": [1]}, "tools[0]"), ({"tools": TOOLS + [{"type": "web_search"}]}, "tools[1]"),
             ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0]"),
             ({"logit_bias": {"99999999": 1}}, "logit_bias"), ({"logit_bias": {"5": 1e308}}, "logit_bias"),
             ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage"),
             ({"seed": 1.5}, "seed"), ({"modalities": ["audio"]}, "modalities")]
    with Daemon("air") as d, Gateway(d) as g:
        for fields, param in cases:
            got = g.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2, **fields})
            error = got.error()
            assert got.status == 400 and error["param"] == param and error["type"] == "invalid_request_error", (
                fields, got.body)
            assert error["code"] == "bad-request" and param.rpartition(".")[2] in error["message"], error
        for prompt in ("", [], ["a", ""]):
            assert g.post("/v1/completions", {"prompt": prompt}).error()["param"] == "prompt"
        for path, body, param in (("/v1/completions", {"prompt": [10**9]}, "prompt"),
                                  ("/detokenize", {"tokens": [10**9]}, "tokens")):
            error = g.post(path, body).error()
            assert error["param"] == param and error["message"].startswith(param + "[0] is 1000000000"), error
        for fields in ({"response_format": {"type": "json_object"}}, {"tool_choice": "required"},
                       {"tool_choice": {"type": "function", "function": {"name": "x"}}}):
            got = chat(g, **fields)
            assert got.status == 400 and got.error()["code"] == "not-yet", got.body
        for body in (b"", b"{", b"[]", b'{"messages":', b'{"a":1,"a":2}', b"\xff\xfe", b"[" * 100000):
            got = g.post("/v1/chat/completions", body)
            assert got.status == 400 and got.error()["message"], (body[:20], got.body)
        got = chat(g, model="nobody")
        assert got.status == 404 and got.error()["code"] == "no-such" and got.error()["param"] == "model", got.body
        for path in ("/health%00", "/health%00x", "/v1/models/air%00x", "/v1/models%00/x"):
            assert g.get(path).status == 404, path
        for path, body, param in (("/tokenize", {"prompt": "a", "add_special_tokens": "no"}, "add_special_tokens"),
                                  ("/tokenize", {"prompt": "a", "model": 5}, "model"),
                                  ("/detokenize", {"tokens": [1], "skip_special_tokens": 1}, "skip_special_tokens")):
            got = g.post(path, body)
            assert got.status == 400 and got.error()["param"] == param, got.body
        got = chat(g, max_tokens=100000)
        assert got.status == 400 and got.error()["code"] == "too-long", got.body
        got = chat(g, user="me", store=False, metadata={}, service_tier="auto", response_format={"type": "text"},
                   max_tokens=None, stop=None, tool_choice="auto")
        assert got.status == 200, got.body
        got = g.send("POST", "/v1/chat/completions", b"a=b", headers={"Content-Type": "text/plain"})
        assert got.status == 415
    with Daemon("air") as d, Gateway(d, "IgnoreUnknownFields=yes") as g:
        assert chat(g, sed=1).status == 200


def what_is_possible_in_part_says_so():
    """Each is refused by its name, with what is possible, and told of where one looks."""
    described = json.loads(subprocess.run([str(GATEWAY), "--openapi"], env=ENV, capture_output=True, check=True).stdout)
    told = [subprocess.run([str(GATEWAY), option], env=ENV, capture_output=True, check=True).stdout.decode()
            for option in ("--help", "--print-man")]
    chat_fields = {"messages": HELLO, "max_tokens": 2}
    cases = [
        ("/v1/chat/completions", chat_fields, [
            ({"response_format": {"type": "json_object"}}, "response_format", "not-yet"),
            ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "not-yet"),
            ({"tool_choice": "required"}, "tool_choice", "not-yet"),
            ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "not-yet"),
            ({"functions": [{"name": "x"}]}, "functions", "bad-request"), ({"function_call": "auto"}, "function_call", "bad-request"),
            ({"audio": {}}, "audio", "bad-request"), ({"modalities": ["audio"]}, "modalities", "bad-request"),
            ({"web_search_options": {}}, "web_search_options", "bad-request")]),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2}, [
            ({"suffix": "b"}, "suffix", "bad-request"), ({"echo": True, "logprobs": 1}, "echo", "bad-request"),
            ({"echo": True, "prompt": [1]}, "echo", "bad-request"), ({"best_of": 2}, "best_of", "bad-request")]),
        ("/v1/responses", {"input": "a", "max_output_tokens": 2}, [
            ({"text": {"format": {"type": "json_schema"}}}, "text.format", "not-yet"),
            ({"tool_choice": "required"}, "tool_choice", "not-yet"), ({"background": True}, "background", "bad-request"),
            ({"conversation": "x"}, "conversation", "bad-request")])]
    with Daemon("air") as d, Gateway(d) as g:
        for path, fields, refused in cases:
            schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            for wrong, param, code in refused:
                got = g.post(path, {**fields, **wrong})
                error = got.error()
                assert got.status == 400 and (error["param"], error["code"]) == (param, code), (wrong, got.body)
                assert param in error["message"] and len(error["message"]) > 30, error
                name = param.partition(".")[0]
                possible = schema["properties"][name]["description"]
                for text in told:
                    assert f"  {name}: {possible}\n" in text, (name, possible)
            empty = {"suffix": "", "echo": False, "n": 1, "best_of": 1} if path == "/v1/completions" else {}
            assert g.post(path, {**fields, **empty}).status == 200


run([
    the_plain_routes_answer,
    metrics_count_what_was_done,
    a_chat_is_what_steamctl_gets,
    a_stream_says_what_the_whole_says,
    text_prompts_of_all_kinds_are_continued,
    every_sampler_reaches_steamd,
    logprobs_are_those_of_steamctl,
    several_choices_share_one_prompt,
    the_second_turn_of_a_client_that_sends_all_again_is_a_hit,
    roles_and_parts_are_what_they_say,
    reasoning_is_told_apart,
    tools_are_called_and_answered,
    a_call_that_was_cut_off_says_so,
    bad_requests_name_the_field,
    what_is_possible_in_part_says_so,
])
