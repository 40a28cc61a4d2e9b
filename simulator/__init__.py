"""An OpenAI-compatible server without a model: for work without a key, for tests, for load and for faults.

It speaks the Responses API (plain, streamed, in the background, resumed, cancelled, deleted), Chat Completions, embeddings
and the list of models on a real socket. Point an OpenAI client at it with a base URL and any key (one that contains
"invalid" is refused, none at all too). It refuses to be anything but rules: replies are deterministic and depend on nothing
but the request (and the responses it was asked to store), tokens and usage are counted by a simple tokeniser
(`simulator.tokens`), web pages, MCP servers and code are made up.

    python -m simulator [--host 127.0.0.1] [--port 8099] [--control] [--first-token-ms 20] [--interval-ms 5]

Every option is a variable too: SIMULATOR_HOST, SIMULATOR_PORT, SIMULATOR_CONTROL, SIMULATOR_FIRST_TOKEN_MS,
SIMULATOR_INTERVAL_MS. SIGTERM and SIGINT end it within a second, open streams included. In a test, on the running loop:

    async with simulator.server.running() as simulator:      # port 0, control door open, no pace
        AsyncOpenAI(base_url=simulator.base_url, api_key="any", max_retries=0)
        await simulator.control.script(ScriptedAnswer(text="Hello"))

What it replies
---------------
A text that shows what was received: the last message, how many came before it, what the user had said. "What is my name?",
"what is my <anything>?", "what did I just say?" and "what was the first thing I said?" are answered from the earlier turns
and the instructions of the same request. Further by rule: calls of add_task, list_tasks, complete_task, update_task and
delete_task where `tools` offers them and the words ask for them; structured output that satisfies its schema (yes/no: no to
refusals and mere politeness); a title of at most six words where the instructions ask for the title of a conversation; each
picture acknowledged as "an image of <n> bytes (<media type>)" or "an image at <URL>"; web search with two citations,
arithmetic in the code interpreter, MCP calls with approval, each where its tool is offered and the words call for it;
reasoning summaries where they are asked for.

Model names
-----------
Any name works. Names of this grammar choose pace and faults:

    sim[-<tokens>-<interval ms>-<first token ms>][-<fault>]

    sim-100-50-200           `tok0 tok1 … tok99`: exactly 100 deltas, the first after 200 ms, then one each 50 ms
    sim-100-0-0-cut-5        numbered tokens, the connection cut after the fifth
    sim-cut-5                the rules' reply, cut after its fifth delta
    sim-status-429-7         429 with Retry-After: 7
    sim-status-503           503

    status-<4xx|5xx>[-<Retry-After seconds>]   refused at once
    cut[-<k>]         the TCP connection is closed in mid-reply        (SDK: APIConnectionError)
    stall[-<k>]       nothing more comes, the socket stays open        (SDK: APITimeoutError)
    malformed[-<k>]   an event whose JSON is broken, then the end      (SDK: JSONDecodeError)
    end[-<k>]         a clean end without a terminal event             (SDK: silent)
    error[-<k>]       an in-stream `error` event, then the end         (SDK: yielded)
    failed[-<k>]      response.failed
    incomplete[-<k>]  response.incomplete

<k> counts deltas of any kind (text, arguments, reasoning summary), 0 where it is left out: before the first one. A shorter
reply has its fault right before its terminal event. cut, stall, malformed and end hit the reader that made the request:
a background run goes on, and GET with stream=true&starting_after=<sequence> gets the rest. The others end the run itself.
Without a stream, cut sends half of the body, malformed and end a body that is no JSON, error a 500. A name that begins with
`sim-` and does not follow the grammar is a 400. The header `x-simulator: <name>` does the same for any model. Order: script,
header, model name, the server's own pace.

The control door
----------------
For tests, off unless started with --control (`running()` opens it). `simulator.control.Control` is its typed client.

POST /_control/script    {"answers": [ANSWER, …], "exhaustive": false} -> {"queued": n}

    ANSWER, every field optional:
    match               {"text": contained in the user's last message, "model": equal,
                         "endpoint": "responses" | "chat.completions" | "embeddings" | "responses.retrieve" |
                         "responses.cancel" | "responses.delete",
                         "asks_title": whether the instructions ask for a conversation's title, default false};
                        by default the first two; of the last three (requests about a stored response) only the fault counts
    times               serves so many requests (default 1), then heals
    for_seconds         instead: serves every request for so long after its first, then heals
    text | deltas       what to say, cut by the tokeniser | exactly these deltas
    citations           [{"url", "title", "start", "end"}] of the text
    citation_markers    also put `U+E200 cite U+E202 turn0search<n> U+E201` behind each citation's span, the rules' own too,
                        each in five deltas; offsets then count the markers. Markers anywhere else: by `deltas`
    function_calls      [{"name", "arguments": object | JSON text, "call_id"}]
    reasoning           a reasoning summary before it
    pace                {"first_token_ms", "interval_ms"}
    hold_after_tokens   waits there (reader and run) until a release
    fault               {"kind": one of those above, "after_tokens", "message", "code"};
                        kind "status": {"status", "retry_after_seconds", "headers", "message", "code"}

    Without text, deltas or function_calls the rules speak, with this pace, hold and fault. The oldest answer that matches
    is taken. "exhaustive": from now until the reset, a request to generate that no answer matches is refused with a 400.

POST /_control/expire-containers -> {"expired": n}: every container of the code interpreter expires. A request that names
                         an expired one, as its tool's or in an item, is a 400, "Container is expired."; a 404 names one
                         that never was
GET /_control/requests   {"count", "requests": [{"number", "endpoint", "headers", "body", "scripted", "asks_title",
                         "outcome"}]}:
                         the newest 2,000, of at most 64 MiB, those about a stored response too (body: its id and the
                         query); outcome: running, completed, refused, broken (cut), disconnected
GET /_control/status     {"unconsumed": [ANSWER, …], "unexpected": [request numbers], "running", "held"}
POST /_control/release   lets held replies go on -> {"released": n}
POST /_control/reset     forgets answers and requests, releases what is held; running replies go on

`Control.verify_consumed()` raises AssertionError where an answer was not consumed or a request was unexpected: call it
at the end of every test.
"""
