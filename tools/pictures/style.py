"""The colours of pictures: classes over CSS variables, light and dark.

`CSS` is for the `<style>` of a file, or for a style sheet. Every name in it begins with `tl-`, so that it can lie
beside other styles.
"""

from __future__ import annotations

__all__ = ["CSS"]

_LIGHT = """--tl-ink: #1f2430; --tl-faint: #6b7280; --tl-line: #dfe3e8; --tl-paper: #ffffff; --tl-path: #d9480f;
  --tl-toolcall: #74aef5; --tl-decision: #b79cf0; --tl-query: #63c7b2; --tl-thought: #b9c0cb;
  --tl-error: #f0868a; --tl-custom: #e8bd62; --tl-failed: #c92a2a;"""
_DARK = """--tl-ink: #e6e9ef; --tl-faint: #9aa3b2; --tl-line: #333a46; --tl-paper: #15181e; --tl-path: #ff922b;
  --tl-toolcall: #2f6db8; --tl-decision: #7050b8; --tl-query: #23806d; --tl-thought: #566072;
  --tl-error: #a83a40; --tl-custom: #8f6b17; --tl-failed: #ff8787;"""

CSS = f"""
.tl {{ {_LIGHT}
  background: var(--tl-paper); font: 11px/1 system-ui, "Segoe UI", sans-serif; max-width: 100%; height: auto; }}
@media (prefers-color-scheme: dark) {{ .tl {{ {_DARK} }} }}
.tl text {{ fill: var(--tl-ink); }}
.tl .tl-axis text {{ fill: var(--tl-faint); font-size: 10px; }}
.tl .tl-axis line {{ stroke: var(--tl-line); }}
.tl .tl-lane line {{ stroke: var(--tl-line); }}
.tl .tl-lane text {{ font-weight: 600; }}
.tl .tl-note {{ fill: var(--tl-faint); }}
.tl .tl-toolcall {{ fill: var(--tl-toolcall); }}
.tl .tl-decision {{ fill: var(--tl-decision); }}
.tl .tl-query {{ fill: var(--tl-query); }}
.tl .tl-thought {{ fill: var(--tl-thought); }}
.tl .tl-error {{ fill: var(--tl-error); }}
.tl .tl-custom {{ fill: var(--tl-custom); }}
.tl .tl-is-error {{ stroke: var(--tl-failed); stroke-width: 1.5; }}
.tl .tl-is-open {{ stroke: var(--tl-ink); stroke-width: 1; stroke-dasharray: 3 2; }}
.tl .tl-group {{ opacity: 0.55; }}
.tl .tl-path, .tl .tl-busy {{ fill: none; stroke: var(--tl-path); pointer-events: none; }}
.tl .tl-path {{ stroke-width: 1; stroke-dasharray: 2 2; }}
.tl .tl-busy {{ stroke-width: 2.5; }}
.tl a:hover rect, .tl a:focus rect {{ stroke: var(--tl-ink); stroke-width: 1.5; }}
.tl-spark {{ stroke: currentColor; fill: none; stroke-width: 1.5; vertical-align: middle; }}
.tl-spark .tl-area {{ fill: currentColor; stroke: none; opacity: 0.15; }}
"""
