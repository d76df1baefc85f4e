"""The page's style sheet: light and dark, wide and narrow.

Colours of the plots are Okabe and Ito's, which people who are colour-blind can tell
apart (https://jfly.uni-koeln.de/color/); blue and orange have a darker or lighter
shade where the page asks for it.
"""

CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1b1f24; --quiet: #57606a; --card: #f4f6f8; --grid: #d8dee4;
  --accent: #0b5cad; --shade: #00000038;
  --paint-0: #0072b2; --paint-1: #d55e00; --paint-2: #009e73; --paint-3: #f0e442;
  --paint-4: #cc79a7; --paint-5: #56b4e9; --paint-6: #e69f00; --paint-7: #999999;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --text: #e8ecf0; --quiet: #a3adb8; --card: #1d232a; --grid: #39424c;
    --accent: #7cc0ff; --shade: #ffffff30;
    --paint-0: #3d9fe0; --paint-1: #ff8c42; --paint-2: #16b98a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
.quiet { color: var(--quiet); }
.verdict {
  border-left: .3rem solid var(--accent); margin: 1rem 0; padding: .25rem 0 .25rem .8rem;
  font-size: 1.15rem; max-width: 46rem;
}
.cards {
  display: grid; gap: .75rem; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 9.5rem), 1fr));
}
.cards > div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.cards dt { color: var(--quiet); font-size: .875rem; }
.cards dd { margin: 0; font-size: .8125rem; color: var(--quiet); }
.cards dd.value { font-size: 1.35rem; font-weight: 600; color: var(--text); line-height: 1.3; }
.plot { display: block; width: 100%; max-width: 40rem; height: auto; margin: .5rem 0; }
.plot text { font-family: system-ui, sans-serif; }
.plot * { stroke-linejoin: round; }
/* A shadow at each edge that hides something: two covers scroll with the table. */
.scroll {
  overflow: auto; max-width: 100%; margin: .5rem 0;
  background:
    linear-gradient(to right, var(--page) 40%, transparent) 0 0 / 2rem 100% no-repeat local,
    linear-gradient(to left, var(--page) 40%, transparent) 100% 0 / 2rem 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) 0 0 / .75rem 100% no-repeat,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / .75rem 100% no-repeat;
}
.long {
  max-height: 22rem; width: fit-content; border: 1px solid var(--grid); border-radius: .5rem;
  padding: 0 .6rem;
}
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
caption { text-align: left; color: var(--quiet); padding: .25rem 0; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; }
thead th { vertical-align: bottom; }
.long thead th { position: sticky; top: 0; background: var(--page); }
tbody th { min-width: 9rem; overflow-wrap: anywhere; font-weight: inherit; }
tbody th.number { min-width: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tbody .number { white-space: nowrap; }
tr.chosen { font-weight: 600; }
ul { max-width: 46rem; padding-left: 1.2rem; margin: .5rem 0; font-size: .875rem; }
code { font-size: .9em; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--grid); font-size: .875rem; }
@media (min-width: 60rem) {
  .beside { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 2.5rem; }
}
@media print { .long { max-height: none; } }
"""
