# mypy: ignore-errors
"""ansible-runner, which runs ansible by Popen and pexpect, from an asyncio program."""

import asyncio
import os
import sys
import tempfile

import ansible_runner

os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]


def run_ansible(directory: str):
    return ansible_runner.run(
        private_data_dir=directory,
        inventory="localhost ansible_connection=local",
        host_pattern="localhost",
        module="command",
        module_args="echo from the module",
        quiet=True,
    )


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        result = await asyncio.to_thread(run_ansible, directory)
        print(result.status, result.rc)
        for event in result.events:
            if event["event"] == "runner_on_ok":
                print(event["event_data"]["res"]["stdout"])
        process.terminate()
        print(await process.wait())


asyncio.run(main())
