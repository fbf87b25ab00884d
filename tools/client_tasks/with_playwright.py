# mypy: ignore-errors
"""Playwright's driver (node) without a browser: its tables, and its HTTP client."""

import asyncio
import http.server
import threading

from playwright.async_api import async_playwright


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"x" * 500_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


async def main() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    async with async_playwright() as playwright:
        print(playwright.firefox.name, playwright.devices["iPhone 13"]["viewport"])
        context = await playwright.request.new_context()
        answer = await context.get(f"http://127.0.0.1:{server.server_port}/")
        print(answer.status, len(await answer.body()))
        await context.dispose()
        try:
            await playwright.chromium.launch(executable_path="/bin/false")
        except Exception as error:
            print(type(error).__name__)
    server.shutdown()
    server.server_close()
    print("closed")


asyncio.run(main())
