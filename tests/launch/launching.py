"""A program whose workers fail when they are first begun."""

FAILS_AT_FIRST = """
import json, os, sys, time
index = json.loads(os.environ['TF_CONFIG'])['task']['index']
def starts(of):
    return os.path.getsize(f'starts-{of}') if os.path.exists(f'starts-{of}') else 0
with open(f'starts-{index}', 'a') as file: file.write('x')
while starts(0) != starts(1): time.sleep(0.01)
if starts(index) <= int(sys.argv[1]):
    if index == 1: sys.exit(starts(index) + 10)
    time.sleep(100)
print('done')
"""
