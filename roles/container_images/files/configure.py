"""What the maintainer scripts of the base image's packages would do, as far as needed. Runs once, in the image."""

from pathlib import Path

users = "root:x:0:0:root:/root:/usr/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/usr/sbin/nologin\n"
Path("/etc/passwd").write_text(users)
Path("/etc/group").write_text("root:x:0:\nnonroot:x:65532:\n")
Path("/home/nonroot").mkdir(parents=True, exist_ok=True)
if not Path("/bin/sh").exists():
    Path("/bin/sh").symlink_to("dash")
bundle = Path("/etc/ssl/certs/ca-certificates.crt")
bundle.parent.mkdir(parents=True, exist_ok=True)
authorities = sorted(Path("/usr/share/ca-certificates/mozilla").glob("*.crt"))
bundle.write_text("".join(path.read_text() for path in authorities))
Path("/configure.py").unlink()
