#!/usr/bin/env python3
import html
import json
import urllib.parse

assert html.escape("<") == "&lt;"
assert json.dumps([1]) == "[1]"
assert urllib.parse.quote(" ") == "%20"
print("Content-Type: text/plain")
print()
print("hello")
