"""A batch API on the loopback, for tests; what is in a batch the faulty server answers."""

import asyncio
import json
import threading

from aiohttp import web
from faulty_server import Faulty


class BatchServer:
    """Serves `/v1/files`, `/v1/batches` and, for probes, chats and completions.

    Attributes:
        states: what a batch is seen to be, look by look; the last one stays. "completed" and
            "expired" have output.
        broken: requests, by their place in a file, that end as lines of the error file.
        unanswered: requests, by their place, that an expired or cancelled batch leaves out.
        fail_next: statuses with which the next requests to files and batches are refused; a
            negative one comes when all was done, 0 lets a request pass.
        cut_next: the next so many files break off half-way.
        room: requests that may wait in all batches together; one too many fails the batch.
        pages: whether lists say that there is no more of them.
        uploads, creations: how many there were.
    """

    def __init__(self):
        self.faulty = Faulty()
        self.states, self.broken, self.unanswered, self.fail_next = ["completed"], set(), set(), []
        self.cut_next, self.room = 0, 10**9
        self.uploads = self.creations = 0
        self.pages = True
        self.files, self.batches = {}, {}
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        started.wait()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self.faulty.close()

    def _serve(self, started):
        app = web.Application(middlewares=[self._refuse], client_max_size=2**30)
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._answer),
                web.post("/v1/completions", self._answer),
                web.get("/v1/files", self._list_files),
                web.post("/v1/files", self._upload),
                web.get("/v1/files/{id}/content", self._content),
                web.get("/v1/batches", self._list_batches),
                web.post("/v1/batches", self._create),
                web.get("/v1/batches/{id}", self._look),
            ]
        )
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = site._server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _refuse(self, request, handler):
        if self.fail_next and ("/files" in request.path or "/batches" in request.path):
            status = self.fail_next.pop(0)
            if status < 0:
                await handler(request)
            if status:
                return await _json({"error": {"message": f"a fault: {abs(status)}"}}, abs(status))
        return await handler(request)

    async def _answer(self, request):
        status, body = self.faulty.answer(request.path, await request.json())
        return await _json(body, status)

    async def _models(self, request):
        return await _json(self.faulty.listing[1])

    async def _list_files(self, request):
        return await self._list(self.files)

    async def _list_batches(self, request):
        return await self._list(self.batches)

    async def _list(self, held):
        data = [{k: v for k, v in each.items() if k != "content"} for each in held.values()]
        pages = {"has_more": False} if self.pages else {}
        return await _json({"object": "list", "data": data, **pages})

    async def _upload(self, request):
        form = await request.post()
        self.uploads += 1
        return await _json(self._keep(form["file"].filename, form["file"].file.read()))

    def _keep(self, name, content):
        number = f"file-{len(self.files)}"
        self.files[number] = {
            "id": number, "object": "file", "filename": name, "bytes": len(content),
            "created_at": 0, "purpose": "batch", "status": "processed", "content": content,
        }  # fmt: skip
        return {k: v for k, v in self.files[number].items() if k != "content"}

    async def _content(self, request):
        content = self.files[request.match_info["id"]]["content"]
        if not self.cut_next:
            return web.Response(body=content)
        self.cut_next -= 1
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        request.transport.close()
        return response

    async def _create(self, request):
        asked = await request.json()
        self.creations += 1
        number = f"batch-{len(self.batches)}"
        self.batches[number] = {
            "id": number, "object": "batch", "endpoint": asked["endpoint"], "status": "validating",
            "input_file_id": asked["input_file_id"], "completion_window": "24h", "created_at": 0,
            "left": list(self.states),
        }  # fmt: skip
        if sum(self._requests(batch) for batch in self.batches.values()) > self.room:
            self.batches[number]["left"] = ["failed"]
            error = {"code": "token_limit_exceeded", "message": "the queue is full"}
            self.batches[number]["errors"] = {"object": "list", "data": [error]}
        return await _json(self.batches[number])

    async def _look(self, request):
        batch = self.batches[request.match_info["id"]]
        batch["status"] = batch["left"].pop(0) if len(batch["left"]) > 1 else batch["left"][0]
        if batch["status"] == "failed" and "errors" not in batch:
            batch["errors"] = {"object": "list", "data": [{"message": "line 1 is no good"}]}
        if (
            batch["status"] in ("completed", "expired", "cancelled")
            and "output_file_id" not in batch
        ):
            self._work(batch)
        return await _json(batch)

    def _requests(self, batch):
        """How many of a batch's requests wait."""
        ended = batch["status"] in ("completed", "failed", "expired", "cancelled")
        waits = not ended and batch["left"] != ["failed"]
        return len(self.files[batch["input_file_id"]]["content"].splitlines()) if waits else 0

    def _work(self, batch):
        output, errors = [], []
        lines = self.files[batch["input_file_id"]]["content"].decode().splitlines()
        for place, line in enumerate(map(json.loads, lines)):
            if batch["status"] != "completed" and place in self.unanswered:
                error = {"code": f"batch_{batch['status']}", "message": "too late"}
                line = {"custom_id": line["custom_id"], "response": None, "error": error}
                errors.append(line)
                continue
            if place in self.broken:
                body = {"error": {"message": "too hard"}}
                response = {"status_code": 400, "body": body}
                errors.append({"custom_id": line["custom_id"], "response": response})
                continue
            status, body = self.faulty.answer(line["url"], line["body"])
            response = {"status_code": status, "body": body}
            # The order of answers is not that of requests.
            output.insert(0, {"custom_id": line["custom_id"], "response": response, "error": None})
        for kind, held in (("output", output), ("error", errors)):
            if held:
                content = "".join(f"{json.dumps(line)}\n" for line in held).encode()
                batch[f"{kind}_file_id"] = self._keep(kind, content)["id"]
        batch["request_counts"] = {
            "total": len(lines), "completed": len(output), "failed": len(errors),
        }  # fmt: skip


async def _json(body, status=200):
    return web.json_response(body, status=status)
