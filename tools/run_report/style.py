"""The styles of a report, and the policy that allows these styles and nothing else."""

from __future__ import annotations

import base64
from hashlib import sha256

from occamdb.tools.pictures import CSS as PICTURES_CSS

__all__ = ["CSS", "POLICY"]

CSS = (
    """
:root { color-scheme: light dark; --ink: #1f2430; --faint: #667080; --line: #dfe3e8; --paper: #fff;
  --box: #f6f7f9; --accent: #1c6dd0; --bad: #c92a2a; --good: #2b8a3e; --mark: #fff3bf; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --faint: #9aa3b2; --line: #333a46; --paper: #15181e; --box: #1d2129;
    --accent: #74aef5; --bad: #ff8787; --good: #69db7c; --mark: #4a3d10; } }
body { color: var(--ink); background: var(--paper); font: 14px/1.5 system-ui, "Segoe UI", sans-serif;
  max-width: 1080px; margin: 0 auto; padding: 16px; }
h1 { font-size: 22px; margin: 8px 0; } h2 { font-size: 16px; margin: 28px 0 6px; }
nav a { margin-right: 12px; } a { color: var(--accent); }
table { border-collapse: collapse; } th, td { text-align: left; vertical-align: top; padding: 2px 12px 2px 0; }
td, pre { overflow-wrap: anywhere; } th { color: var(--faint); font-weight: 500; white-space: nowrap; }
pre { background: var(--box); padding: 6px 8px; margin: 2px 0; white-space: pre-wrap; max-height: 480px; overflow: auto;
  font: 12px/1.45 ui-monospace, monospace; border-radius: 4px; }
code { font: 12px ui-monospace, monospace; }
.wide, .picture { overflow-x: auto; } .faint { color: var(--faint); } .bad { color: var(--bad); }
.good { color: var(--good); } .note { background: var(--mark); padding: 4px 8px; border-radius: 4px; }
.broken td { background: var(--mark); }
ul.tree { list-style: none; padding-left: 18px; margin: 0; }
.tree > li > ul.tree { border-left: 1px solid var(--line); }
summary { cursor: pointer; } li:target > details > summary { background: var(--mark); }
@media print { pre { max-height: none; } }
"""
    + PICTURES_CSS
)

_HASH = base64.b64encode(sha256(CSS.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"
