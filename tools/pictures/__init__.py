"""Pictures of what agents did: timelines as SVG, sparklines as text and as SVG.

1. Everything here is a pure function of values: nothing reads a database, a clock or a file.
2. Stored text goes through `texts` on its way into a picture, so any of it gives well-formed XML and shows as text.
3. A picture has no script, no `style` attribute and no reference to anything outside itself. Colours are classes of
   `style.CSS`, whose variables follow the reader's light or dark scheme.
"""

from occamdb.tools.pictures.forest import BARS_MAX
from occamdb.tools.pictures.sparkline import ASCII_BLOCKS, sparkline, sparkline_svg
from occamdb.tools.pictures.style import CSS
from occamdb.tools.pictures.texts import brief, pretty, xml_lines, xml_text
from occamdb.tools.pictures.timeline import Bar, Lane, Timeline, swim_lanes, timeline
from occamdb.tools.pictures.timeline_svg import timeline_svg

__all__ = [
    "ASCII_BLOCKS",
    "BARS_MAX",
    "CSS",
    "Bar",
    "Lane",
    "Timeline",
    "brief",
    "pretty",
    "sparkline",
    "sparkline_svg",
    "swim_lanes",
    "timeline",
    "timeline_svg",
    "xml_lines",
    "xml_text",
]
