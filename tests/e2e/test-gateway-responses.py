#!/usr/bin/env python3
"""The Responses API: events, stored conversations that go on, branch, are shown and removed."""
import re
import threading

from gatewayhttp import *
from steamd_e2e import *


def create(g, said="Hello there", **fields):
    fields = {"input": said, "max_output_tokens": 8, "ignore_eos": True, **fields}
    return g.post("/v1/responses", fields)


def text_of(response):
    return "".join(p["text"] for item in response["output"] if item["type"] == "message" for p in item["content"])


def sessions(d):
    return json.loads(d.ctl("session", "list", "--json"))["sessions"]



def a_response_goes_on_without_being_sent_again():
    with Daemon("air", "ChatTemplate=glm47") as d, Gateway(d) as g:
        long = "word " * 150
        first = create(g, long, reasoning={"effort": "none"}, max_output_tokens=40, seed=3).json()
        assert first["object"] == "response" and first["status"] == "incomplete", first
        assert first["incomplete_details"] == {"reason": "max_output_tokens"} and first["error"] is None
        assert first["usage"]["output_tokens"] == 40 and first["usage"]["input_tokens"] > 150
        before = d.status()
        second = create(g, "And now?", previous_response_id=first["id"], reasoning={"effort": "none"}).json()
        after = d.status()
        assert second["previous_response_id"] == first["id"] and second["id"][:21] == first["id"][:21]
        assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        cached = second["usage"]["input_tokens_details"]["cached_tokens"]
        assert cached >= first["usage"]["input_tokens"], second["usage"]
        # the scheduler computed what is new, and what a page that was not full had beside it
        computed = (after["prompt_tokens"] - before["prompt_tokens"]) - (
            after["kv"]["found_tokens"] - before["kv"]["found_tokens"])
        new = second["usage"]["input_tokens"] - first["usage"]["input_tokens"] - 40
        assert 0 < computed <= new + after["kv"]["page_tokens"], (computed, new, before["kv"], after["kv"])
        [session] = sessions(d)
        assert session["turns"] == 2 and session["name"].startswith("response-")
        # and what came over the socket was the new message alone
        turns = json.loads(d.ctl("session", "show", "--json", session["name"]))["turn"]
        assert [len(t["request"]["messages"]) for t in turns] == [1, 1], turns
        assert turns[1]["request"]["messages"][0]["content"] == "And now?"
        # it is the same as what a client that sends all again would get
        again = g.post("/v1/responses", {
            "input": [{"role": "user", "content": long}, {"role": "assistant", "content": text_of(first)},
                      {"role": "user", "content": "And now?"}],
            "max_output_tokens": 8, "ignore_eos": True, "store": False, "reasoning": {"effort": "none"}}).json()
        assert again["usage"]["input_tokens"] == second["usage"]["input_tokens"]
        assert len(sessions(d)) == 1 and again["store"] is False
        assert g.get(f"/v1/responses/{again['id']}").status == 404


def what_is_not_to_be_stored_leaves_nothing():
    with Daemon("air") as d, Gateway(d) as g:
        kept = create(g, "kept-kept-kept").json()
        for fields in ({}, {"stream": True}, {"previous_response_id": kept["id"]}):
            got = create(g, "gone-gone-gone", store=False, instructions="gone-gone-too", **fields)
            assert got.status == 200, got.body
        for one in (got.json()["id"], "resp_" + got.json()["id"][5:]):
            assert g.get(f"/v1/responses/{one}").status == 404
            assert create(g, "on", previous_response_id=one).status == 404
        assert [(s["name"][9:], s["turns"]) for s in sessions(d)] == [(kept["id"][5:21], 1)]
        d.ctl("session", "show", "response-" + kept["id"][5:21])
        files = [f.read_bytes() for f in (d.dir / "state").rglob("*") if f.is_file()]
        assert any(b"kept-kept-kept" in f for f in files) and not any(b"gone-gone" in f for f in files)


def several_go_on_from_one_at_once():
    with Daemon("air") as d, Gateway(d) as g:
        first = create(g, seed=1).json()
        made = []
        threads = [threading.Thread(target=lambda i=i: made.append(
            create(g, f"left {i}", previous_response_id=first["id"], max_output_tokens=100).json())) for i in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len({m["id"] for m in made}) == 6, made
        for m in made:
            assert g.get(f"/v1/responses/{m['id']}").json()["output"] == m["output"]
        assert sum(m["id"][:21] == first["id"][:21] for m in made) == 1


def streams_that_wait_go_on_from_one_at_once():
    """Which one has the next turn is not known before there is room, long after they began."""
    with Daemon("air", "MaxRequestsPerConnection=12") as d, Gateway(d) as g:
        first = create(g, seed=1).json()
        filled = [g.connect() for _ in range(4)]
        for c in filled:
            c.request("POST", "/v1/completions", json.dumps(
                {"prompt": "a", "max_tokens": 60000, "ignore_eos": True, "stream": True}))
        for c in filled:
            c.getresponse().readline()
        ended, opened = [], []

        def go_on(i):
            body = {"input": f"left {i}", "previous_response_id": first["id"], "max_output_tokens": 8,
                    "ignore_eos": True, "stream": True}
            c = g.connect()
            c.request("POST", "/v1/responses", json.dumps(body), {"Content-Type": "application/json"})
            response = c.getresponse()
            opened.append(i)
            events = [json.loads(line[6:]) for line in response if line.startswith(b"data: ")]
            ended.append((events[0], events[-1]))
            c.close()

        threads = [threading.Thread(target=go_on, args=(i,)) for i in range(3)]
        for t in threads:
            t.start()
        wait_for(lambda: len(opened) == 3, 20, "streams that wait to begin")
        assert not ended
        for c in filled:
            c.close()
        for t in threads:
            t.join()
        assert [e["type"] for _, e in ended] == ["response.incomplete"] * 3, ended
        assert all(b["type"] == "response.created" and b["response"]["id"] == e["response"]["id"] for b, e in ended)
        assert len({e["response"]["id"] for _, e in ended}) == 3, ended
        for _, e in ended:
            assert g.get(f"/v1/responses/{e['response']['id']}").json()["output"] == e["response"]["output"]


def a_response_branches():
    with Daemon("air") as d, Gateway(d) as g:
        first = create(g, seed=1).json()
        a = create(g, "left", previous_response_id=first["id"]).json()
        b = create(g, "right", previous_response_id=first["id"]).json()
        assert a["id"][:21] == first["id"][:21] != b["id"][:21]
        c = create(g, "on", previous_response_id=b["id"]).json()
        assert c["id"][:21] == b["id"][:21]
        said = json.loads(d.ctl("session", "show", "--json", "response-" + c["id"][5:21]))["turn"]
        assert [t["request"]["messages"][-1]["content"] for t in said] == ["Hello there", "right", "on"], said
        assert said[0]["answer"]["content"] == json.loads(
            d.ctl("session", "show", "--json", "response-" + a["id"][5:21]))["turn"][0]["answer"]["content"]


def instructions_are_those_of_the_request():
    with Daemon("air") as d, Gateway(d) as g:
        def rendered(response):
            turns = json.loads(d.ctl("session", "show", "--json", "response-" + response["id"][5:21]))["turn"]
            return [m["content"] for t in turns for m in t["request"]["messages"] + [t["answer"]]][:-1]

        first = create(g, instructions="Be brief").json()
        assert rendered(first) == ["Be brief", "Hello there"] and first["instructions"] == "Be brief"
        same = create(g, "2", instructions="Be brief", previous_response_id=first["id"]).json()
        assert rendered(same) == ["Be brief", "Hello there", text_of(first), "2"]
        other = create(g, "3", instructions="Be long", previous_response_id=same["id"]).json()
        assert rendered(other) == ["Be long", "Hello there", text_of(first), "2", text_of(same), "3"]
        none = create(g, "4", previous_response_id=other["id"]).json()
        assert rendered(none) == ["Hello there", text_of(first), "2", text_of(same), "3", text_of(other), "4"]
        items = g.get(f"/v1/responses/{none['id']}/input_items").json()
        assert [i["content"][0]["text"] for i in items["data"]] == ["4"], items


def stored_ones_are_shown_and_removed():
    with Daemon("air") as d, Gateway(d) as g:
        first = create(g, metadata={"a": "b"}, temperature=0.5).json()
        second = create(g, [{"role": "developer", "content": "x"},
                            {"role": "user", "content": [{"type": "input_text", "text": "y"}]}],
                        previous_response_id=first["id"]).json()
        for made in (first, second):
            shown = g.get(f"/v1/responses/{made['id']}").json()
            for key in made:
                assert shown[key] == made[key], (key, shown[key], made[key])
        assert shown["metadata"] == {} and first["metadata"] == {"a": "b"} and first["temperature"] == 0.5
        items = g.get(f"/v1/responses/{second['id']}/input_items?order=asc").json()
        assert [(i["role"], i["content"][0]["text"]) for i in items["data"]] == [("system", "x"), ("user", "y")]
        page = g.get(f"/v1/responses/{second['id']}/input_items?limit=1").json()
        assert page["has_more"] and page["data"][0]["content"][0]["text"] == "y"
        rest = g.get(f"/v1/responses/{second['id']}/input_items?limit=1&after={page['last_id']}").json()
        assert not rest["has_more"] and rest["data"][0]["content"][0]["text"] == "x"
        for query, param in (("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order"),
                             ("after=msg_x", "after")):
            got = g.get(f"/v1/responses/{second['id']}/input_items?{query}")
            assert got.status == 400 and got.error()["param"] == param, got.body
        got = g.get(f"/v1/responses/{second['id']}?stream=true")
        assert got.status == 400 and got.error()["param"] == "stream", got.body
        assert g.get(f"/v1/responses/{second['id']}?stream=false").status == 200
        refused = g.send("DELETE", f"/v1/responses/{first['id']}")
        assert refused.status == 409 and refused.error()["code"] == "moved", refused.body
        for made in (second, first):
            assert g.send("DELETE", f"/v1/responses/{made['id']}").json() == {
                "id": made["id"], "object": "response", "deleted": True}
            assert g.get(f"/v1/responses/{made['id']}").status == 404
            assert g.send("DELETE", f"/v1/responses/{made['id']}").status == 404
            got = create(g, previous_response_id=made["id"])
            assert got.status == 404 and got.error()["param"] == "previous_response_id", got.body
            assert got.error()["message"] == f"there is no response '{made['id']}'"
        assert sessions(d) == []
        for wrong in ("resp_x", "resp_" + "0" * 29, "x" * 34, "resp_" + "f" * 29):
            assert g.get(f"/v1/responses/{wrong}").status == 404
            got = create(g, previous_response_id=wrong)
            assert got.status == 404 and got.error()["param"] == "previous_response_id", got.body
        # what was sent to a session by hand is no response
        d.ctl("ask", "--session", "response-0123456789abcdef", "-n", 2, "hello")
        assert g.get("/v1/responses/resp_0123456789abcdef0000100000000").status == 404


def events_come_as_clients_expect_them():
    with Daemon("air", "ChatTemplate=glm47") as d, Gateway(d) as g:
        events = g.events("/v1/responses", {"input": "Hello", "max_output_tokens": 6, "ignore_eos": True, "seed": 1,
                                            "stream": True, "reasoning": {"effort": "none"}})
        data = [json.loads(x) for _, x in events]
        assert [n for n, _ in events] == [e["type"] for e in data]
        assert [e["sequence_number"] for e in data] == list(range(len(data)))
        kinds = [e["type"].removeprefix("response.") for e in data]
        assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"], kinds
        assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"], kinds
        assert set(kinds[4:-4]) == {"output_text.delta"}
        last = data[-1]["response"]
        text = "".join(e["delta"] for e in data if e["type"] == "response.output_text.delta")
        assert text == data[-4]["text"] == text_of(last) and last["id"] == data[0]["response"]["id"]
        assert data[0]["response"]["status"] == "in_progress" and data[0]["response"]["output"] == []
        assert {e["item_id"] for e in data if "item_id" in e} == {last["output"][0]["id"]}
        assert g.get(f"/v1/responses/{last['id']}").json()["output"] == last["output"]

        events = g.events("/v1/responses", {"input": "Hello", "max_output_tokens": 6, "ignore_eos": True, "seed": 1,
                                            "stream": True, "store": False})
        data = [json.loads(x) for _, x in events]
        assert "response.reasoning_text.delta" in [e["type"] for e in data]
        [item] = data[-1]["response"]["output"]
        assert item["type"] == "reasoning" and item["content"][0]["text"]
        assert data[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
        got = create(g, include=["message.output_text.logprobs"], top_logprobs=2, reasoning={"effort": "none"}).json()
        logprobs = got["output"][0]["content"][0]["logprobs"]
        assert len(logprobs) == 8 and len(logprobs[0]["top_logprobs"]) == 2


def a_running_one_is_cancelled():
    with Daemon("air") as d, Gateway(d) as g:
        c = g.connect()
        body = {"input": "Hello", "max_output_tokens": 50000, "ignore_eos": True, "stream": True}
        c.request("POST", "/v1/responses", json.dumps(body), {"Content-Type": "application/json"})
        stream = c.getresponse()
        stream.readline()
        made = json.loads(stream.readline()[6:])["response"]["id"]
        assert g.get(f"/v1/responses/{made}").json()["status"] == "in_progress"
        for got in (create(g, "on", previous_response_id=made), g.send("DELETE", f"/v1/responses/{made}")):
            assert got.status == 409 and "being made" in got.error()["message"], got.body
        got = g.post(f"/v1/responses/{made}/cancel", {}).json()
        assert got["id"] == made and got["status"] == "cancelled", got
        last = json.loads([line for line in stream.read().decode().splitlines() if line.startswith("data: ")][-1][6:])
        assert last["type"] == "response.incomplete" and last["response"]["status"] == "cancelled"
        wait_for(lambda: g.get(f"/v1/responses/{made}").json().get("status") == "cancelled", what="the stored one")
        assert g.post(f"/v1/responses/{made}/cancel", {}).status == 404
        assert create(g, "on", previous_response_id=made).status == 200


def old_ones_leave():
    with Daemon("air") as d:
        d.ctl("session", "new", "mine")
        with Gateway(d) as g:
            old, pinned = [create(g, max_output_tokens=1).json()["id"] for _ in range(2)]
            d.ctl("session", "pin", "response-" + pinned[5:21])
        with Gateway(d, days=29) as g:
            assert g.get(f"/v1/responses/{old}").status == 200
        assert len(sessions(d)) == 3
        with Gateway(d, days=31) as g:
            assert g.get("/v1/models").status == 200  # whoever comes first
            wait_for(lambda: len(sessions(d)) == 2, what="one session less")
            assert g.get(f"/v1/responses/{old}").status == 404
            assert create(g, "on", previous_response_id=old).status == 404
            assert g.get(f"/v1/responses/{pinned}").status == 200
        assert sorted(s["name"] for s in sessions(d)) == ["mine", "response-" + pinned[5:21]]


def too_many_leave():
    with Daemon("air") as d, Gateway(d, "MaxResponses=3") as g:
        d.ctl("session", "new", "mine")
        made = [create(g, max_output_tokens=1).json()["id"] for _ in range(50)]
        assert len(sessions(d)) == 51
        create(g, max_output_tokens=1)
        wait_for(lambda: len(sessions(d)) <= 5, what="fewer sessions")
        assert "mine" in [s["name"] for s in sessions(d)]
        assert sum(g.get(f"/v1/responses/{one}").status == 200 for one in made) in (2, 3)


def what_makes_no_sense_is_named():
    with Daemon("air") as d, Gateway(d) as g:
        for fields, param in (({"input": []}, "input"), ({"input": 3}, "input"), ({"input": None}, "input"),
                              ({"input": [{"type": "image"}]}, "input[0]"),
                              ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
                               "input[0].content[0]"),
                              ({"background": True}, "background"), ({"conversation": "x"}, "conversation"),
                              ({"tools": [{"type": "web_search"}]}, "tools[0]"), ({"n": 2}, "n"),
                              ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
                              ({"max_output_tokens": 0}, "max_output_tokens"), ({"store": "yes"}, "store")):
            got = create(g, **fields)
            assert got.status == 400 and got.error()["param"] == param, (fields, got.body)
        assert sessions(d) == []


def a_retrieved_one_cost_what_it_cost():
    with Daemon("air") as d:
        with Gateway(d) as g:
            first = create(g, "word " * 50, max_output_tokens=16).json()
            second = create(g, "more", previous_response_id=first["id"], max_output_tokens=16).json()
            assert second["usage"]["input_tokens_details"]["cached_tokens"] > 40, second["usage"]
            for made in (first, second):
                assert g.get(f"/v1/responses/{made['id']}").json()["usage"] == made["usage"]
            again = create(g, "other", previous_response_id=first["id"], max_output_tokens=16).json()
            assert g.get(f"/v1/responses/{again['id']}").json()["usage"] == again["usage"]
            left_out = create(g, "once", store=False).json()
            assert g.get(f"/v1/responses/{left_out['id']}").status == 404
        with Gateway(d) as g:  # which was not there
            for made in (first, second, again):
                assert g.get(f"/v1/responses/{made['id']}").json()["usage"] == made["usage"]


def what_one_label_stored_is_not_there_for_another():
    with Daemon("air") as d:
        keys = d.dir / "keys"
        keys.write_text("alice alice-key-0123456789\nbob bob-key-0123456789ab\n")
        with Gateway(d, f"Keys={keys}") as g:
            alice, bob = [{"Authorization": f"Bearer {k}"} for k in ("alice-key-0123456789", "bob-key-0123456789ab")]
            stored = g.post("/v1/responses", {"input": "hi", "max_output_tokens": 16}, headers=alice).json()["id"]
            c = g.connect()
            body = {"input": "go on", "stream": True, "max_output_tokens": 60000, "ignore_eos": True}
            c.request("POST", "/v1/responses", json.dumps(body), {"Content-Type": "application/json", **alice})
            answer, line = c.getresponse(), b""
            while b'"id":"resp_' not in line:
                line = answer.readline()
            running = re.search(rb'"id":"(resp_\w+)"', line)[1].decode()
            for made in (stored, running):
                for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
                    got = g.send(method, f"/v1/responses/{made}{path}", headers=bob)
                    assert got.status == 404, (method, path, got.body)
                for store in (True, False):
                    body = {"input": "hi", "previous_response_id": made, "store": store}
                    got = g.post("/v1/responses", body, headers=bob)
                    assert got.status == 404, got.body
            assert g.post(f"/v1/responses/{running}/cancel", {}, headers=alice).status == 200
            c.close()


run([
    a_retrieved_one_cost_what_it_cost,
    what_one_label_stored_is_not_there_for_another,
    a_response_goes_on_without_being_sent_again,
    what_is_not_to_be_stored_leaves_nothing,
    several_go_on_from_one_at_once,
    streams_that_wait_go_on_from_one_at_once,
    a_response_branches,
    instructions_are_those_of_the_request,
    stored_ones_are_shown_and_removed,
    events_come_as_clients_expect_them,
    a_running_one_is_cancelled,
    old_ones_leave,
    too_many_leave,
    what_makes_no_sense_is_named,
])
