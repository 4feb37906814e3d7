// Puts data and charts together.
(function page() {
  const data = JSON.parse(byId("data").textContent);
  const column = Object.fromEntries(data.columns.map((name, at) => [name, at]));
  const { totals } = data;

  // Theme: the system's, until somebody chooses another.
  const THEMES = ["system", "light", "dark"];
  let theme = remembered() || "system";
  function remembered() {
    try {
      return localStorage.getItem("registry-gc-theme");
    } catch {
      return null; // a file opened from a disk may have no storage
    }
  }
  function applyTheme() {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
  }
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try {
      localStorage.setItem("registry-gc-theme", theme);
    } catch {
      // then it holds for this visit
    }
    applyTheme();
  });
  applyTheme();

  function tile(label, value, more, look) {
    return element(
      "div", { className: `tile ${look || ""}` },
      element("div", { className: "label" }, label),
      element("div", { className: "value" }, value),
      element("div", { className: "more" }, more),
    );
  }
  function waiting({ runs, objects, bytes, hidden }) {
    const of = hidden ? `${counted(objects, "object")}, and versions of ${count(hidden)} more` : counted(objects, "object");
    return runs.length ? [tile("In quarantine", size(bytes), `${of}, of ${counted(runs.length, "run")}`)] : [];
  }
  const more = totals.reclaimable_untagged_bytes;
  byId("tiles").append(
    tile("Stored", size(totals.stored_bytes), counted(totals.blobs, "blob")),
    tile("Reclaimable now", size(totals.reclaimable_bytes), `${percent(totals.reclaimable_bytes, totals.stored_bytes + totals.upload_bytes)} of it`),
    tile("Reclaimable with -m", size(more), `${percent(more, totals.stored_bytes + totals.upload_bytes)} of it`, more ? "goes" : ""),
    tile("Saved by sharing", size(totals.logical_bytes - totals.stored_bytes + totals.unused_bytes), `${percent(totals.logical_bytes - totals.stored_bytes + totals.unused_bytes, totals.logical_bytes)} of logical bytes`),
    ...waiting(data.quarantine),
    tile("Repositories", count(totals.repositories), `${counted(totals.groups, "group")}, ${counted(totals.tags, "tag")}`),
    tile("Manifests", count(totals.manifests), `${count(totals.untagged)} untagged`),
  );
  byId("version").textContent = data.version;
  byId("summary").hidden = true; // the tiles say the same

  // What a collection would free
  const COLOURS = [["kept", "kept"], ["untagged", "goes with -m"], ["goes-now", "goes now"]];
  const whole = totals.stored_bytes + totals.upload_bytes;
  const parts = [
    ["kept", Math.max(0, whole - more)],
    ["untagged", Math.max(0, more - totals.reclaimable_bytes)],
    ["goes-now", totals.reclaimable_bytes],
  ];
  const free = element("div", { className: "key" });
  key(free, parts.map(([look, value], at) => [look, `${COLOURS[at][1]} `, bold(size(value)), ` ${percent(value, whole)}`]));
  byId("free").append(bar(parts, whole, "whole"), free);
  const groups = [...data.groups].sort((one, two) => two[column.logical_bytes] - one[column.logical_bytes]).slice(0, 10);
  const most = groups.length ? weight(groups[0]) : 0;
  function weight(row) {
    return row[column.logical_bytes] + row[column.upload_bytes];
  }
  byId("groups").append(element("ul", { className: "bars" }, ...groups.map((row) => {
    const now = row[column.reclaimable_bytes];
    const goes = row[column.reclaimable_untagged_bytes];
    const name = row[column.name];
    const share = [["kept", Math.max(0, weight(row) - goes)], ["untagged", Math.max(0, goes - now)], ["goes-now", now]];
    const line = bar(share, Math.max(most, weight(row)));
    tip.on(line, () => [name, `${size(row[column.logical_bytes])} logical, ${size(row[column.unique_bytes])} unique`, `${size(goes)} reclaimable with -m, ${size(now)} now`]);
    return element("li", null, element("span", { className: "name", title: name }, name), line,
      element("span", { className: "value" }, size(weight(row)), goes ? ` · ${percent(goes, weight(row))} goes` : ""));
  })));

  // Treemap
  const depth = data.group_depth;
  const map = { metric: "logical_bytes", group: null };
  const shares = () => data.repositories.map((row) => ({
    name: row[column.name],
    group: row[column.name].split("/").slice(0, depth).join("/"),
    value: row[column[map.metric]],
    all: row[column.logical_bytes],
    goes: Math.min(row[column.logical_bytes], row[column.reclaimable_untagged_bytes]),
  }));
  const redrawMap = fitted(byId("map"), (width) => treemap(byId("map"), width, shares(), map.group, {
    choose: (name) => find(name),
    enter,
    word: byId("map-metric").selectedOptions[0].textContent,
  }));
  function enter(group) {
    map.group = group;
    tip.hide();
    drawPath();
    redrawMap();
  }
  function drawPath() {
    const parts = ["Click a repository to find it in the table."];
    if (map.group !== null) {
      const back = element("button", { type: "button" }, "all groups");
      back.addEventListener("click", () => enter(null));
      parts.splice(0, 1, back, " / ", bold(map.group));
    } else {
      const picker = element("select", { ariaLabel: "Show one group" }, element("option", { value: "" }, "all groups"),
        ...groups.map((row) => element("option", { value: row[column.name] }, row[column.name])));
      picker.addEventListener("change", () => enter(picker.value));
      parts.unshift(picker);
    }
    byId("map-path").replaceChildren(...parts);
  }
  byId("map-metric").addEventListener("change", (event) => {
    map.metric = event.target.value;
    redrawMap();
  });
  drawPath();
  key(byId("map-key"), [["heat0", "nothing to free"], ["heat1", "to 20%"], ["heat2", "to 40%"], ["heat3", "to 60%"], ["heat4", "to 80%"], ["heat5", "more of it goes with -m"]]);

  // Age, growth
  fitted(byId("age"), (width) => ageChart(byId("age"), width, data.ages));
  key(byId("age-key"), COLOURS);
  byId("age-table").append(plainTable(
    [["younger than", false], ["blobs", true], ["bytes", true], ["goes", true], ["with -m", true]],
    data.ages.map((age) => [age.label, count(age.blobs), size(age.bytes), size(age.reclaimable_bytes), size(age.reclaimable_untagged_bytes)]),
  ));
  fitted(byId("growth"), (width) => growthChart(byId("growth"), width, data.growth));
  key(byId("growth-key"), [["kept", "stored"], ["goes-now", "freed by a run"]]);
  byId("growth-table").append(plainTable(
    [["when", false], ["what", false], ["bytes", true]],
    [
      ...data.growth.reports.map((point) => [point.time, "stored", point.stored_bytes]),
      ...data.growth.runs.map((run) => [run.time, "freed by a run", run.freed_bytes]),
    ].sort((one, two) => (one[0] < two[0] ? 1 : -1)).map(([time, what, bytes]) => [time.replace("T", " ").replace("Z", ""), what, size(bytes)]),
  ));

  // All of it
  const table = virtualTable(byId("all"), column, byId("all-count"));
  const yearAgo = new Date(Date.parse(data.made) - 365 * DAY).toISOString();
  const ONLY = {
    "": () => true,
    goes: (row) => row[column.reclaimable_untagged_bytes] > 0,
    untagged: (row) => row[column.untagged] > 0,
    year: (row) => row[column.newest_push] !== null && row[column.newest_push] < yearAgo,
    uploads: (row) => row[column.uploads] > 0,
    held: (row) => row[column.held],
  };
  function refresh() {
    const what = byId("all-what").value;
    const only = ONLY[byId("all-only").value];
    const text = byId("all-filter").value.trim().toLowerCase();
    // In quotes it is the whole name; else words, each of them anywhere in it.
    const whole = text.length > 2 && text.startsWith('"') && text.endsWith('"') ? text.slice(1, -1) : null;
    const words = text.split(/\s+/).filter(Boolean);
    const named = (name) => whole === null ? has(name, words) : name === whole;
    const wanted = (row) => only(row) && named(row[column.name].toLowerCase());
    table.show(data[what], wanted, what === "groups" ? "group" : "repository");
  }
  function has(name, words) {
    return words.every((word) => name.includes(word));
  }
  function find(name) {
    tip.hide();
    byId("all-what").value = "repositories";
    byId("all-only").value = "";
    byId("all-filter").value = `"${name}"`;
    refresh();
    byId("all").closest("section").scrollIntoView({ block: "start" });
    byId("all").focus({ preventScroll: true });
  }
  for (const id of ["all-what", "all-only"]) byId(id).addEventListener("change", refresh);
  byId("all-filter").addEventListener("input", refresh);
  refresh();

  // Largest and oldest
  const hex = (digest) => element("code", { title: digest }, digest.slice(0, 19));
  const FIRST = {
    images: [[["repository", false], ["tags", false], ["digest", false], ["size", true], ["pushed", true]],
      (image) => [image.repository, image.tags.slice(0, 4).join(", ") + (image.tags.length > 4 ? ` and ${image.tags.length - 4} more` : ""), hex(image.digest), size(image.bytes), day(image.pushed)]],
    blobs: [[["digest", false], ["used by", false], ["size", true], ["stored", true], ["fate", false]],
      (blob) => [hex(blob.digest), blob.repositories ? blob.repository + (blob.repositories > 1 ? ` and ${count(blob.repositories - 1)} more` : "") : "nobody", size(blob.bytes), day(blob.modified), blob.fate]],
  };
  function drawFirst() {
    const [what, order] = byId("first-what").value.split(" ");
    const [columns, row] = FIRST[what];
    byId("first").replaceChildren(plainTable(columns, data[what][order].map(row)));
  }
  byId("first-what").addEventListener("change", drawFirst);
  drawFirst();

  if (data.held.length) {
    byId("held-card").hidden = false;
    byId("held").append(plainTable(
      [["repository", false], ["digest", false], ["why", false]],
      data.held.map((hold) => [hold.repository, hold.digest ? hex(hold.digest) : "–", hold.reason]),
    ));
  }
})();
