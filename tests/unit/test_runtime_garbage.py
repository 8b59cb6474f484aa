"""What the interpreter walks: in a process of its own, since it is the whole interpreter's."""

import subprocess
import sys

COUNT = """
import gc, sys
import tensorfusion.app.agent
from tensorfusion.runtime import garbage

class Loop: pass

before = len(gc.get_objects())
garbage.keep_what_is_there()
after = len(gc.get_objects())
loop = Loop(); loop.itself = loop
del loop
print(before, after, gc.collect())
"""


def test_what_a_program_has_loaded_is_walked_no_more_and_new_garbage_is_found():
    done = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, timeout=60
    )
    before, after, found = map(int, done.stdout.split())
    assert before > 50_000
    assert after < before / 100
    assert found >= 1
