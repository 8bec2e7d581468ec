# ruff: noqa: PTH109, PTH119 - it runs once for each module, and pathlib takes longer than all the rest.
# What Ansible starts as Python below `python -m tests.tools.warm`: has its program run by the interpreter there. The
# lines before this one are its own shebang. It imports little, for it runs once for each module.
import json
import os
import socket
import sys

arguments = sys.argv[1:]
path = os.environ.get("HEADRACE_WARM_SOCKET")
# Whatever is no module, and what has lost its environment, gets a Python of its own.
if not path or (arguments and not os.path.basename(arguments[0]).startswith("AnsiballZ_")):
    os.execv(sys.executable, [sys.executable, *arguments])
umask = os.umask(0o22)
os.umask(umask)
call = {"arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ), "umask": umask}
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    socket.send_fds(connection, [json.dumps(call).encode() + b"\n"], [0, 1, 2])
    status = connection.recv(1)
# No status: whoever ran it was killed.
sys.exit(status[0] if status else 137)
