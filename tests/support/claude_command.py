"""What the SDK needs of Claude's command line: one turn, in its stream of JSON, with a transcript of two lines.

It is run as a program and answers with the number of lines that the transcript had. `PROJECT_KEY` is the folder of the
transcripts.
"""

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any


def tell(**message: Any) -> None:
    """Send a message to the SDK."""
    print(json.dumps(message), flush=True)


def answer(session: str, prompt: Any) -> None:
    """One turn: it is written to the transcript and mirrored, and the result sent."""
    folder = Path(os.environ["CLAUDE_CONFIG_DIR"]) / "projects" / os.environ["PROJECT_KEY"]
    transcript = folder / f"{session}.jsonl"
    known = len(transcript.read_text().splitlines()) if transcript.exists() else 0
    agents = len(list(folder.glob(f"{session}/subagents/*.jsonl")))
    text = f"I know {known} lines and {agents} agents"
    content = [{"type": "text", "text": text}]
    reply = {"role": "assistant", "model": "m1", "content": content}
    lines = [
        {"type": said["role"], "uuid": str(uuid.uuid4()), "sessionId": session, "message": said}
        for said in (prompt, reply)
    ]
    tell(type="assistant", session_id=session, message=reply)
    tell(type="transcript_mirror", filePath=str(transcript), entries=lines)
    below = transcript.with_suffix("") / "subagents" / "agent-1.jsonl"
    tell(type="transcript_mirror", filePath=str(below), entries=lines[:1])
    times = {"duration_ms": 1, "duration_api_ms": 1, "num_turns": 1}
    tell(type="result", subtype="success", is_error=False, session_id=session, result=text, **times)


def main() -> None:
    """Answer until there was a turn."""
    if "-v" in sys.argv:
        print("2.99.0 (Claude Code)")
        return
    resumed = [word.removeprefix("--resume=") for word in sys.argv if word.startswith("--resume=")]
    session = resumed[0] if resumed else str(uuid.uuid4())
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "control_request":
            done = {"subtype": "success", "request_id": message["request_id"], "response": {}}
            tell(type="control_response", response=done)
        elif message["type"] == "user":
            answer(session, message["message"])
            return


if __name__ == "__main__":
    main()
