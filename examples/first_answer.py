"""First answer: one frame, one prompt, and what was looked at, drawn.

    python examples/first_answer.py [FRAME] [PROMPT]
"""
import sys
from pathlib import Path

import ps3_sdk

frame = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "frames" / "panel_4k.jpg"
prompt = sys.argv[2] if len(sys.argv) > 2 else "what is the word on the purple bar chart?"

with ps3_sdk.Session() as session:              # the embedded bundle; Session("engine.plan") opens yours
    look = session.look(frame)                  # the low-res pass, once a frame
    answer = look.ask(prompt)
    print(answer)
    other = look.ask("what is on the blue gauge?")      # a second question shares that pass; there is no such gauge
    print(other.headline())
    print(f"asked in {other.timing.total_ms - look.timing.total_ms:.0f} ms more, the low-res pass took {look.timing.total_ms:.0f} ms")
    answer.save_overlay("first_answer.jpg")
print("drawn: first_answer.jpg")
