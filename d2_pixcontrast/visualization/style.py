"""The report's style sheet: light and dark, from a phone's width to a projector's."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f6f7f9; --ink: #16191d; --muted: #5d6671; --rule: #e1e4e8;
  --run0: #7c8794; --run1: #0b7a75; --run2: #b4530a; --run3: #6d4bc3; --better: #0b7a75;
  --worse: #b3372f; --dot-edge: rgba(0, 0, 0, .28);
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111418; --panel: #1a1e24; --ink: #e9ecef; --muted: #9aa4af; --rule: #2b3138;
    --run0: #93a0ae; --run1: #3fc9bd; --run2: #f0a35e; --run3: #ab94f0; --better: #3fc9bd;
    --worse: #f08a80; --dot-edge: rgba(255, 255, 255, .4);
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 Inter, ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto,
    "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1120px; margin: 0 auto; padding: 56px 32px 72px; }
h1, h2, h3, p, figure, dl, dd { margin: 0; }
h1 { font-size: 2.25rem; line-height: 1.15; letter-spacing: -.022em; font-weight: 680; }
h2 { margin-bottom: 16px; font-size: 1.3rem; line-height: 1.3; letter-spacing: -.012em;
  font-weight: 640; }
h3 { font-size: .95rem; line-height: 1.4; font-weight: 600; }
section { margin-top: 64px; }
.lead { margin-top: 12px; max-width: 46em; font-size: 1.08rem; color: var(--muted); }
.note { margin: -8px 0 22px; max-width: 50em; color: var(--muted); font-size: .95rem; }
.muted, small { color: var(--muted); }
small { font-size: .84rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--muted); }
.grid { stroke: var(--rule); } .axis { stroke: var(--muted); }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.target { fill: transparent; } .dot { stroke: var(--panel); stroke-width: 1.2; }
.line.run0 { stroke: var(--run0); } .dot.run0 { fill: var(--run0); }
.line.run1 { stroke: var(--run1); } .dot.run1 { fill: var(--run1); }
.line.run2 { stroke: var(--run2); } .dot.run2 { fill: var(--run2); }
.line.run3 { stroke: var(--run3); } .dot.run3 { fill: var(--run3); }
.scatter circle { stroke: var(--dot-edge); stroke-width: .7; }
.panel { background: var(--panel); border-radius: 12px; padding: 18px 20px 14px; min-width: 0; }
.panel h3 { margin-bottom: 10px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }

.figures { display: flex; flex-wrap: wrap; gap: 20px 64px; margin-top: 36px;
  padding: 26px 0 24px; border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); }
.figure b { display: block; font-size: 3.3rem; line-height: 1.1; font-weight: 650;
  letter-spacing: -.035em; }
.figure span { color: var(--muted); }
.run0 b { color: var(--run0); } .run1 b { color: var(--run1); }
.run2 b { color: var(--run2); } .run3 b { color: var(--run3); }
.better, .better b { color: var(--better); } .worse, .worse b { color: var(--worse); }
.caveat { margin-top: 18px; color: var(--muted); font-size: .95rem; max-width: 50em; }

.key { display: flex; flex-wrap: wrap; gap: 6px 20px; margin-bottom: 14px; font-size: .9rem; }
.key span { display: inline-flex; align-items: center; gap: 8px; }
.swatch { width: 14px; height: 14px; border-radius: 4px; flex: none;
  box-shadow: inset 0 0 0 1px var(--dot-edge); }
.stroke { width: 22px; height: 4px; border-radius: 2px; flex: none; }
.stroke.run0 { background: var(--run0); } .stroke.run1 { background: var(--run1); }
.stroke.run2 { background: var(--run2); } .stroke.run3 { background: var(--run3); }

table { width: 100%; border-collapse: collapse; }
th { font-weight: 500; text-align: left; }
thead th { color: var(--muted); font-size: .84rem; padding: 0 0 8px; }
tbody th, tbody td { border-top: 1px solid var(--rule); padding: 9px 0; }
td, th.number { text-align: right; white-space: nowrap; padding-left: 22px !important; }
td.bars { width: 52%; }
.name { display: inline-flex; align-items: center; gap: 10px; }
.track { background: var(--panel); border-radius: 3px; padding: 1px 0; }
.bar { height: 7px; border-radius: 2px; margin: 2px 0; min-width: 1px; }
.bar.run0 { background: var(--run0); } .bar.run1 { background: var(--run1); }
.bar.run2 { background: var(--run2); } .bar.run3 { background: var(--run3); }
tr.mean th, tr.mean td { font-weight: 650; border-top: 2px solid var(--ink); }

.rows { display: grid; gap: 8px 12px; }
.rows > h3 { align-self: end; padding-top: 2px; }
.rows figure { min-width: 0; }
.rows img { display: block; width: 100%; height: auto; border-radius: 6px; }
.rows figcaption { margin-top: 4px; font-size: .8rem; color: var(--muted); min-height: 1.55em; }
.narrow { display: none; }

dl { display: grid; grid-template-columns: max-content 1fr; font-size: .93rem; }
dt, dd { padding: 7px 0; border-top: 1px solid var(--rule); }
dt { color: var(--muted); padding-right: 40px; }
dd { overflow-wrap: anywhere; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
footer { margin-top: 56px; color: var(--muted); font-size: .85rem; }

@media (max-width: 720px) {
  main { padding: 28px 18px 48px; }
  h1 { font-size: 1.7rem; }
  section { margin-top: 48px; }
  .pair { grid-template-columns: 1fr; gap: 14px; }
  .panel { padding: 14px 12px 10px; border-radius: 10px; }
  .figures { gap: 14px 34px; margin-top: 24px; padding: 18px 0; }
  .figure b { font-size: 2.3rem; }
  td, th.number { padding-left: 12px !important; font-size: .9rem; }
  td.bars { width: 30%; }
  .rows { grid-template-columns: 1fr 1fr !important; gap: 6px 8px; }
  .rows > h3 { display: none; }
  .narrow { display: inline; } .wide { display: none; }
  .stroke.narrow { display: inline-block; vertical-align: middle; }
  .name { gap: 7px; font-size: .92rem; }
  .rows figure.last { margin-bottom: 14px; }
  dl { grid-template-columns: 1fr; }
  dt { padding-bottom: 0; } dd { border-top: 0; padding-top: 0; }
}
@media print { section { break-inside: avoid; } }
"""
