// Texts and elements. Whatever comes from the data becomes a text node or a property, never markup.
const DAY = 86400e3;
const SVG = "http://www.w3.org/2000/svg";

/** Bytes in human units, in powers of 1000. */
function size(bytes) {
  const units = ["Bytes", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  let value = Math.max(0, bytes);
  while (value >= 999.95 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

/** A count with commas. */
function count(value) {
  return value.toLocaleString("en-US");
}

/** A count and its noun. */
function counted(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** A part of a whole, in percent. */
function percent(part, whole) {
  if (!whole) return "0%";
  const value = (100 * part) / whole;
  return value > 0 && value < 1 ? "<1%" : `${Math.round(value)}%`;
}

/** The day of a time such as 2026-01-31T12:00:00Z, or a dash. */
function day(time) {
  return time ? time.slice(0, 10) : "–";
}

/** An element with properties and children; texts among them become text nodes. */
function element(name, properties, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** The same for SVG, which has attributes only. */
function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

/** Bold text within a line. */
function bold(text) {
  return element("b", null, text);
}

/** What the colours of a chart mean: pairs of class and text. */
function key(place, entries) {
  place.replaceChildren(
    ...entries.map(([look, ...texts]) =>
      element("span", null, element("span", { className: `swatch ${look}` }), ...texts),
    ),
  );
}

/** A plain table; `columns` are pairs of heading and whether it holds numbers. */
function plainTable(columns, rows) {
  const cellClass = (at) => (columns[at][1] ? "number" : "break");
  const heads = columns.map(([text], at) =>
    element("th", { scope: "col", className: cellClass(at) }, text),
  );
  const body = rows.map((row) =>
    element("tr", null, ...row.map((text, at) => element("td", { className: cellClass(at) }, text))),
  );
  return element(
    "table", null, element("thead", null, element("tr", null, ...heads)),
    element("tbody", null, ...body),
  );
}

/** The one tooltip: lines of text beside the pointer, or beside what has the focus. */
const tip = {
  show(lines, x, y) {
    const box = byId("tip");
    box.replaceChildren(bold(lines[0]), ...lines.slice(1).flatMap((line) => [line, element("br")]));
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const left = Math.min(x + 14, window.innerWidth - width - 8);
    const top = y + 18 + height > window.innerHeight ? y - height - 12 : y + 18;
    box.style.left = `${Math.max(8, left)}px`;
    box.style.top = `${Math.max(8, top)}px`;
  },
  hide() {
    byId("tip").hidden = true;
  },
  /** Show `lines` whenever the pointer is over `target`, or it has the focus. */
  on(target, lines) {
    target.addEventListener("pointermove", (event) => tip.show(lines(), event.clientX, event.clientY));
    target.addEventListener("pointerleave", tip.hide);
    target.addEventListener("focus", () => {
      if (!target.matches(":focus-visible")) return;
      const box = target.getBoundingClientRect();
      tip.show(lines(), box.left, box.bottom - 18);
    });
    target.addEventListener("blur", tip.hide);
  },
};
