(() => {
  "use strict";
  const NS = "http://www.w3.org/2000/svg";
  const LANE = 9;
  const levels = [...document.querySelectorAll(".level")];
  const all = [...document.querySelectorAll("details")];
  const element = (name, attributes) => {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // Arrows that pass a layer run in lanes beside the boxes: each gets the first that is free.
  const lanes = (level, arrows) => {
    const rows = new Map();
    [...level.querySelectorAll(":scope > .layer")].forEach((layer, row) => {
      for (const box of layer.children) rows.set(box.id, row);
    });
    const taken = [];
    const found = arrows.map(([source, target]) => {
      const ends = [rows.get(source), rows.get(target)].sort((a, b) => a - b);
      if (rows.get(target) - rows.get(source) === 1) return -1;
      let lane = taken.findIndex((used) => used.every(([a, b]) => b <= ends[0] || a >= ends[1]));
      if (lane < 0) lane = taken.push([]) - 1;
      taken[lane].push(ends);
      return lane;
    });
    return [found, taken.length];
  };

  // From the lower edge of one box to the upper one of another, with bends between layers only. Where
  // a layer takes several lines, what stands below another box is reached from its left, and left
  // to its right.
  const path = (from, to, lane, level) => {
    const side = level.gutter + 3;
    const x1 = from.under ? level.width - side : from.x, x2 = to.over ? side : to.x;
    const start = from.under
      ? `M${from.right} ${from.middle}H${x1}V${from.below}`
      : `M${x1} ${from.bottom}V${from.below}`;
    const end = to.over ? `V${to.middle}H${to.left}` : `V${to.top}`;
    const y1 = from.below, y2 = to.above;
    if (lane < 0) {
      const bend = Math.max(8, (y2 - y1) / 2);
      return `${start}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}${end}`;
    }
    const x = level.gutter - 4 - LANE * (lane + 0.5);
    const r = Math.min(6, Math.abs(x2 - x) / 2), down = y1 + 7, up = y2 - 9;
    const turn = up > down ? r : -r;
    return `${start}V${down - 2}Q${x1} ${down} ${x1 - r} ${down}H${x + r}` +
      `Q${x} ${down} ${x} ${down + turn}V${up - turn}` +
      `Q${x} ${up} ${x + r} ${up}H${x2 - r}Q${x2} ${up} ${x2} ${y2}${end}`;
  };

  const place = (id, origin) => {
    const box = document.getElementById(id), layer = box.parentElement;
    const at = box.getBoundingClientRect(), around = layer.getBoundingClientRect();
    const x = at.left + at.width / 2;
    const others = [...layer.children].map((other) => other.getBoundingClientRect())
      .filter((other) => other.left < x && x < other.right);
    return {
      x: x - origin.left,
      middle: at.top + Math.min(14, at.height / 2) - origin.top,
      left: at.left - origin.left, right: at.right - origin.left,
      top: at.top - origin.top, bottom: at.bottom - origin.top,
      above: around.top - origin.top, below: around.bottom - origin.top,
      over: others.some((other) => other.bottom <= at.top + 1),
      under: others.some((other) => other.top >= at.bottom - 1),
    };
  };

  const draw = (level) => {
    const [arrows, lane, count] = level.wiring;
    const crowded = level.querySelector(":scope > .many") !== null;
    const gutter = count ? count * LANE + 8 : 0;
    level.style.paddingLeft = level.style.paddingRight = `${gutter + (crowded ? 12 : 0)}px`;
    const origin = level.getBoundingClientRect();
    if (!origin.width) return;
    const sizes = { gutter, width: origin.width };
    const wires = element("svg", { class: "wires", "aria-hidden": "true" });
    arrows.forEach(([source, target, kind], i) => {
      const from = place(source, origin), to = place(target, origin);
      wires.append(element("path", { d: path(from, to, lane[i], sizes), class: kind }));
      if (kind !== "spans") {
        const tip = to.over ? `M${to.left} ${to.middle}l-7 -3.5v7z` : `M${to.x} ${to.top}l-3.5 -7h7z`;
        wires.append(element("path", { d: tip, class: "tip" }));
      }
    });
    level.querySelector(":scope > .wires")?.remove();
    level.append(wires);
  };

  for (const level of levels) {
    const arrows = JSON.parse(level.dataset.arrows);
    level.wiring = [arrows, ...lanes(level, arrows)];
  }
  const redraw = () => levels.forEach(draw);
  const watcher = new ResizeObserver((entries) => entries.forEach((entry) => draw(entry.target)));
  levels.forEach((level) => watcher.observe(level));
  document.documentElement.classList.add("drawn");
  document.querySelector(".tools").hidden = false;
  document.getElementById("unfold").addEventListener("click", () => all.forEach((d) => { d.open = true; }));
  document.getElementById("fold").addEventListener("click", () => all.slice(1).forEach((d) => { d.open = false; }));
  addEventListener("beforeprint", redraw);
  addEventListener("afterprint", redraw);
  redraw();
})();
