// Charts: D3 works out places and ticks, the style sheet knows the colours. Each draws itself anew
// at the width that there is, so that texts keep their size on any screen.
const CELLS = 240; // of the treemap; more could not be told apart, and the table has them all
const GROUPS = 40;
const HEATS = 6;

/** Call `draw(width)` now and whenever the width of `place` changes. */
function fitted(place, draw) {
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (place.clientWidth !== width) redraw();
  });
  function redraw() {
    width = place.clientWidth;
    if (width) draw(width);
  }
  observer.observe(place);
  redraw();
  return redraw;
}

/** A bar of parts, pairs of class and value; `most` is what a full bar would stand for. */
function bar(parts, most, look) {
  const total = parts.reduce((sum, [, value]) => sum + value, 0);
  const fill = element("div", { className: "fill" });
  fill.style.width = `${most ? (100 * total) / most : 0}%`;
  for (const [name, value] of parts) {
    if (!value) continue;
    const part = element("span", { className: name });
    part.style.flex = `${value} 0 0`;
    fill.append(part);
  }
  return element("div", { className: `track ${look || ""}`, ariaHidden: "true" }, fill);
}

/** How much of a share would go, as one of the classes heat0 to heat5. */
function heat(goes, all) {
  const part = all ? goes / all : 0;
  return `heat${part ? Math.min(HEATS - 1, 1 + Math.floor(part * (HEATS - 1))) : 0}`;
}

/** `text` cut to about `width` pixels. */
function cut(text, width, letter) {
  const most = Math.floor(width / (letter || 6.6));
  return text.length <= most ? text : most > 2 ? `${text.slice(0, most - 1)}…` : "";
}

/**
 * A treemap of repositories in their groups. `shares` have name, group, value, all and goes;
 * `choose(name)` is called for a repository, `enter(group)` for a group.
 */
function treemap(place, width, shares, only, { choose, enter, word }) {
  const root = d3.hierarchy(forest(shares, only)).sum((node) => node.value || 0);
  if (!root.value) {
    place.replaceChildren(element("p", { className: "empty" }, "Nothing here takes any room."));
    return;
  }
  root.sort((one, two) => two.value - one.value);
  const height = Math.round(Math.max(300, Math.min(520, width * 0.46)));
  d3.treemap().size([width, height]).paddingInner(2).paddingOuter(only === null ? 2 : 0)
    .paddingTop((node) => (node.depth === 1 && node.children ? 22 : 0)).round(true)(root);
  const label = `Treemap of ${word}: ${counted(shares.length, "repository").replace(/ys$/, "ies")}; the table below has all of them`;
  const drawing = shape("svg", { height, role: "group", "aria-label": label });
  for (const node of root.children || []) if (node.children) drawing.append(...groupFrame(node));
  const cells = root.leaves().filter((node) => node.x1 > node.x0 && node.y1 > node.y0);
  const drawn = cells.map((node) => cell(node, { choose, enter }));
  drawing.append(...drawn);
  roving(drawing, drawn);
  place.replaceChildren(drawing);
}

/** What the treemap shows, as a tree: the largest shares, and what is left of each group as one. */
function forest(shares, only) {
  const within = only === null ? shares : shares.filter((share) => share.group === only);
  const largest = [...within].sort((one, two) => two.value - one.value);
  const named = new Set(largest.slice(0, CELLS));
  const groups = new Map();
  for (const share of largest) {
    if (!share.value) continue;
    const inside = groups.get(share.group) || [];
    inside.push(share);
    groups.set(share.group, inside);
  }
  const tree = [...groups].map(([group, inside]) => branch(group, inside, named));
  if (only !== null) return { children: tree.flatMap((node) => node.children || [node]) };
  tree.sort((one, two) => two.total - one.total);
  const rest = tree.slice(GROUPS).flatMap((node) => node.shares);
  if (rest.length) tree.splice(GROUPS, tree.length, merged(rest, null));
  return { children: tree };
}

function branch(group, shares, named) {
  const total = shares.reduce((sum, share) => sum + share.value, 0);
  if (shares.length === 1 && shares[0].name === group) return { ...shares[0], shares, total };
  const children = shares.filter((share) => named.has(share));
  const rest = shares.filter((share) => !named.has(share));
  if (rest.length) children.push(merged(rest, group));
  return { name: group, group, children, shares, total };
}

/** Many small shares as one cell. */
function merged(shares, group) {
  const sum = (field) => shares.reduce((total, share) => total + share[field], 0);
  return { many: shares.length, group, value: sum("value"), all: sum("all"), goes: sum("goes") };
}

function groupFrame(node) {
  const [width, height] = [node.x1 - node.x0, node.y1 - node.y0];
  const frame = shape("rect", { class: "group", x: node.x0, y: node.y0, width, height, rx: 4 });
  const text = cut(node.data.name, width - 12, 7);
  const title = shape("text", { class: "group-name", x: node.x0 + 7, y: node.y0 + 16 }, text);
  return [frame, title];
}

function cell(node, { choose, enter }) {
  const [width, height] = [node.x1 - node.x0, node.y1 - node.y0];
  const { name, group, many, all, goes } = node.data;
  const text = many ? `${count(many)} more` : group && name.startsWith(`${group}/`) ? name.slice(group.length + 1) : name;
  const title = many ? `${count(many)} more${group ? ` in ${group}` : " repositories in other groups"}` : name;
  const lines = () => [title, `${size(all)} logical`, `${size(goes)} reclaimable with -m (${percent(goes, all)})`];
  const box = shape(
    "g",
    { class: "cell", role: "button", tabindex: -1, "aria-label": lines().join(", ") },
    shape("rect", { class: heat(goes, all), x: node.x0, y: node.y0, width, height, rx: 3 }),
  );
  if (width > 34 && height > 17) {
    box.append(shape("text", { x: node.x0 + 6, y: node.y0 + 15 }, cut(text, width - 10)));
    if (height > 34 && width > 58) {
      box.append(shape("text", { class: "size", x: node.x0 + 6, y: node.y0 + 30 }, size(node.value)));
    }
  }
  const act = () => (many ? group && enter(group) : choose(name));
  box.addEventListener("click", act);
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act();
  });
  tip.on(box, lines);
  return box;
}

/** One stop for the tab key; the arrows go on from there, from the largest to the smallest. */
function roving(drawing, cells) {
  if (!cells.length) return;
  cells[0].setAttribute("tabindex", 0);
  drawing.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const at = cells.indexOf(document.activeElement);
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    const next = cells[Math.max(0, Math.min(cells.length - 1, at + steps[event.key]))];
    cells[at].setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  });
}

/** The frame of a chart with an axis of bytes. */
function frame(width, most, label) {
  const box = { left: 62, right: 10, top: 10, bottom: 30, width, height: 230 };
  const up = d3.scaleLinear([0, most || 1], [box.height - box.bottom, box.top]);
  const drawing = shape("svg", { height: box.height, role: "img", "aria-label": label });
  for (const tick of byteTicks(most)) {
    const y = Math.round(up(tick)) + 0.5;
    drawing.append(
      shape("line", { class: tick ? "grid" : "axis", x1: box.left, x2: width - box.right, y1: y, y2: y }),
      shape("text", { x: box.left - 8, y: y + 4, "text-anchor": "end" }, tick ? size(tick).replace(".0 ", " ") : "0"),
    );
  }
  return { box, up, drawing };
}

/** Round numbers of a unit of bytes, as d3's ticks are of numbers. */
function byteTicks(most) {
  return d3.ticks(0, most || 1, 4).filter((tick) => tick === Math.floor(tick));
}

/** Blobs by age: what is kept, what goes with -m, and what goes now. */
function ageChart(place, width, ages) {
  const most = Math.max(...ages.map((age) => age.bytes));
  const { box, up, drawing } = frame(width, most, "Bytes of blobs by their age; as a table below");
  const across = d3.scaleBand(ages.map((age) => age.label), [box.left, width - box.right])
    .paddingInner(0.28).paddingOuter(0.12);
  const narrow = across.bandwidth() < 46;
  for (const age of ages) {
    const goes = age.reclaimable_bytes;
    const untagged = age.reclaimable_untagged_bytes - goes;
    let base = 0;
    const column = shape("g");
    for (const [look, value] of [["kept", age.bytes - goes - untagged], ["untagged", untagged], ["goes-now", goes]]) {
      if (value <= 0) continue;
      const [y0, y1] = [up(base), up(base + value)];
      column.append(shape("rect", {
        class: look, x: across(age.label), width: across.bandwidth(), y: y1, height: Math.max(0.5, y0 - y1 - 0.7), rx: 1.5,
      }));
      base += value;
    }
    // The whole height answers the pointer, also where the bar is low.
    column.append(shape("rect", {
      x: across(age.label), width: across.bandwidth(), y: box.top, height: box.height - box.bottom - box.top, fill: "transparent",
    }));
    tip.on(column, () => [
      age.label === "older" ? "older than 2 years" : `up to ${age.label}`,
      `${size(age.bytes)} in ${counted(age.blobs, "blob")}`,
      `${size(goes)} go now, ${size(untagged)} more with -m`,
    ]);
    const x = across(age.label) + across.bandwidth() / 2;
    const text = narrow ? age.label.replace(/ (.).*/, "$1").replace("older", "old") : age.label;
    drawing.append(column, shape("text", { x, y: box.height - 10, "text-anchor": "middle" }, text));
  }
  place.replaceChildren(drawing);
}

/** What was stored at each report, and what each run freed. */
function growthChart(place, width, growth) {
  const points = growth.reports.map((point) => ({ ...point, at: new Date(point.time) }));
  const runs = growth.runs.filter((run) => run.freed_bytes).map((run) => ({ ...run, at: new Date(run.time) }));
  if (points.length + runs.length < 2) {
    place.replaceChildren(element("p", { className: "empty" },
      "One report so far. Each further report adds a point here, and each collection what it freed."));
    return;
  }
  const most = Math.max(...points.map((point) => point.stored_bytes), ...runs.map((run) => run.freed_bytes));
  const { box, up, drawing } = frame(width, most, "Bytes stored over time, and bytes that runs freed; as a table below");
  const times = [...points, ...runs].map((one) => one.at);
  const [first, last] = [Math.min(...times), Math.max(...times)];
  const across = d3.scaleUtc([first, last === first ? first + DAY : last], [box.left + 10, width - box.right - 10]);
  const floor = up(0);
  for (const run of runs) {
    const x = across(run.at);
    const y = up(run.freed_bytes);
    const one = shape("rect", { class: "goes-now", x: x - 3, width: 6, y, height: Math.max(1, floor - y), rx: 1.5 });
    tip.on(one, () => [`Freed ${size(run.freed_bytes)}`, day(run.time)]);
    drawing.append(one);
  }
  const path = points.map((point) => `${across(point.at).toFixed(1)},${up(point.stored_bytes).toFixed(1)}`).join("L");
  if (points.length > 1) {
    const [from, to] = [across(points[0].at), across(points[points.length - 1].at)];
    drawing.append(
      shape("path", { class: "area", d: `M${path}L${to},${floor}L${from},${floor}Z` }),
      shape("path", { class: "line", d: `M${path}` }),
    );
  }
  // The edges of many dots, side by side, would paint over the line.
  const [look, r] = points.length > 60 ? ["dot many", 2] : ["dot", 4];
  for (const point of points) {
    const dot = shape("circle", { class: look, cx: across(point.at), cy: up(point.stored_bytes), r });
    tip.on(dot, () => [size(point.stored_bytes), day(point.time), `${counted(point.blobs, "blob")}, ${size(point.reclaimable_untagged_bytes)} reclaimable with -m`]);
    drawing.append(dot);
  }
  const format = across.tickFormat(Math.max(2, Math.floor(width / 130)));
  for (const tick of across.ticks(Math.max(2, Math.floor(width / 130)))) {
    drawing.append(shape("text", { x: across(tick), y: box.height - 10, "text-anchor": "middle" }, format(tick)));
  }
  place.replaceChildren(drawing);
}
