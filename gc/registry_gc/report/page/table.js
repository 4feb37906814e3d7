// The table of all repositories. Only the rows in sight are elements, so that a hundred thousand
// repositories scroll as ten do; the rest is two gaps of the right height.
const ROW = 34; // pixels, as in the style sheet
const SPARE = 12; // rows above and below those in sight

const TABLE = [
  ["name", "name", "text", 0],
  ["logical_bytes", "logical", "size", 88],
  ["unique_bytes", "unique", "size", 88],
  ["shared_bytes", "shared", "size", 88],
  ["reclaimable_bytes", "goes", "size", 88],
  ["reclaimable_untagged_bytes", "with -m", "size", 88],
  ["tags", "tags", "count", 66],
  ["manifests", "manifests", "count", 90],
  ["untagged", "untagged", "count", 84],
  ["oldest_push", "first push", "day", 98],
  ["newest_push", "last push", "day", 98],
];
const WRITE = { text: (value) => value, size, count, day };

/** A table of the rows that `source()` returns; `column` gives a field's place in them. */
function virtualTable(place, column, status) {
  const state = { rows: [], shown: [], sort: "logical_bytes", down: true, first: -1 };
  const above = element("td", { colSpan: TABLE.length });
  const below = element("td", { colSpan: TABLE.length });
  const gaps = [above, below].map((cell) =>
    element("tr", { className: "gap", ariaHidden: "true" }, cell),
  );
  const heads = TABLE.map(([field, title, kind]) => {
    const button = element("button", { type: "button" }, title);
    button.addEventListener("click", () => {
      const down = state.sort === field ? !state.down : kind !== "text";
      Object.assign(state, { sort: field, down });
      arrange();
    });
    return element("th", { scope: "col", className: looks(field, kind) }, button);
  });
  const widths = TABLE.map(([, , , width]) => {
    const col = element("col", { className: width ? "" : "name" }); // that one is the sheet's
    if (width) col.style.width = `${width}px`;
    return col;
  });
  const body = element("tbody", null, ...gaps);
  const table = element(
    "table", null, element("colgroup", null, ...widths),
    element("thead", null, element("tr", { ariaRowIndex: "1" }, ...heads)), body,
  );
  place.replaceChildren(table);
  const pool = [];

  function looks(field, kind) {
    return field === "name" ? "first" : kind === "text" ? "" : "number";
  }

  function poolRow(at) {
    while (pool.length <= at) {
      const cells = TABLE.map(([field, , kind]) => element("td", { className: looks(field, kind) }));
      pool.push(element("tr", null, ...cells));
    }
    return pool[at];
  }

  function fill(line, row, position) {
    line.ariaRowIndex = String(position + 2);
    TABLE.forEach(([field, , kind], at) => {
      const cell = line.cells[at];
      const value = row[column[field]];
      cell.textContent = kind === "size" && !value ? "–" : WRITE[kind](value);
      if (field !== "name") {
        cell.classList.toggle("none", !value);
        return;
      }
      cell.title = value;
      if (row[column.held]) cell.append(element("span", { className: "badge" }, "held"));
    });
  }

  function draw() {
    const room = Math.ceil(place.clientHeight / ROW);
    const last = Math.max(0, state.shown.length - room);
    const first = Math.max(0, Math.min(last, Math.floor(place.scrollTop / ROW)) - SPARE);
    const end = Math.min(state.shown.length, first + room + 2 * SPARE);
    if (first === state.first && end === state.end) return;
    Object.assign(state, { first, end });
    const lines = [];
    for (let at = first; at < end; at += 1) {
      const line = poolRow(at - first);
      fill(line, state.shown[at], at);
      lines.push(line);
    }
    above.style.height = `${first * ROW}px`;
    below.style.height = `${(state.shown.length - end) * ROW}px`;
    // Rows that are there already stay there: replacing all of them at each step flickers.
    for (const line of pool.slice(lines.length)) line.remove();
    for (const line of lines) if (!line.parentNode) gaps[1].before(line);
  }

  function arrange() {
    const at = column[state.sort];
    const way = state.down ? -1 : 1;
    const byName = column.name;
    state.shown.sort((one, two) => {
      const [a, b] = [one[at], two[at]];
      if (a !== b) {
        // Repositories without a push are last, whichever way.
        if (a === null) return 1;
        if (b === null) return -1;
        return a < b ? -way : way;
      }
      return one[byName] < two[byName] ? -1 : one[byName] > two[byName] ? 1 : 0;
    });
    heads.forEach((head, place) => {
      const [field, title] = TABLE[place];
      const sorted = field === state.sort;
      if (sorted) head.ariaSort = state.down ? "descending" : "ascending";
      else head.removeAttribute("aria-sort");
      head.firstChild.textContent = sorted ? `${title} ${state.down ? "↓" : "↑"}` : title;
    });
    place.scrollTop = 0;
    redraw();
  }

  function redraw() {
    state.first = -1;
    table.ariaRowCount = String(state.shown.length + 1);
    draw();
  }

  let waiting = false;
  place.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  }, { passive: true });
  new ResizeObserver(draw).observe(place);

  return {
    /** Show those of `rows` that `wanted` lets through. */
    show(rows, wanted, noun) {
      state.shown = rows.filter(wanted);
      const all = counted(rows.length, noun).replace(/ys$/, "ies");
      const some = `${count(state.shown.length)} of ${all}`;
      status.textContent = state.shown.length === rows.length ? all : some;
      arrange();
    },
  };
}
