"use strict";
/* Tables that sort and filter; what a point of a figure is; the row of a run, opened. Without a script all of the page
   is there, and points are links with titles. */

const FILTERED = 8; // rows; a shorter table can be seen whole
const SECONDS = { h: 3600, min: 60, s: 1 };

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/* A cell as a number: "−1.0 ± 0.2" is -1, "1 h 5 min" is 3900; null where it begins with none. */
function numberOf(text) {
  const times = [...text.matchAll(/([\d.]+) (h|min|s)\b/g)];
  if (/^[\d.]+ (h|min|s)\b/.test(text)) return times.reduce((sum, [, n, unit]) => sum + n * SECONDS[unit], 0);
  const start = text.replace("−", "-").replaceAll(",", "").match(/^[+-]?\d*\.?\d+(e[+-]?\d+)?/i);
  return start ? Number(start[0]) : null;
}

const textOf = (row, index) => row.cells[index].textContent.trim();
const isEmpty = (text) => text === "" || text === "–";

/* Rows between the empty ones are a block: controls stay below the settings. */
function blocksOf(body) {
  const blocks = [[]];
  for (const row of body.rows) {
    if (row.textContent.trim() === "") blocks.push([]);
    else blocks.at(-1).push(row);
  }
  return blocks;
}

function sort(table, index, direction) {
  const body = table.tBodies[0];
  const filled = [...body.rows].map((row) => textOf(row, index)).filter((text) => !isEmpty(text));
  const numeric = filled.every((text) => numberOf(text) !== null);
  const compare = (a, b) =>
    numeric ? numberOf(a) - numberOf(b) : a.localeCompare(b, "en", { numeric: true, sensitivity: "base" });
  for (const rows of blocksOf(body)) {
    const end = rows.at(-1)?.nextSibling ?? null;
    const sorted = [...rows].sort((one, other) => {
      const [a, b] = [textOf(one, index), textOf(other, index)];
      return isEmpty(a) || isEmpty(b) ? isEmpty(a) - isEmpty(b) : direction * compare(a, b);
    });
    for (const row of sorted) body.insertBefore(row, end);
  }
  for (const [position, head] of [...table.tHead.rows[0].cells].entries()) {
    if (position !== index) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  }
}

function makeSortable(table) {
  for (const [index, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = make("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => {
      closeRows(table);
      sort(table, index, head.getAttribute("aria-sort") === "ascending" ? -1 : 1);
    });
    head.append(button);
  }
}

function makeFilter(table) {
  const field = make("input", { type: "search", placeholder: "Filter rows", autocomplete: "off" });
  field.setAttribute("aria-label", "Filter the rows of this table");
  const count = make("output");
  field.addEventListener("input", () => {
    closeRows(table);
    const words = field.value.toLowerCase().split(/\s+/);
    const rows = [...table.tBodies[0].rows].filter((row) => row.textContent.trim() !== "");
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    count.textContent = field.value && `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });
  table.parentElement.before(make("p", { className: "filter" }, field, " ", count));
}

/* The row of a run opens to a list of its own fields; where it is chosen, its points and curves stand out. */
const fields = JSON.parse(document.getElementById("fields")?.textContent ?? "{}");

function closeRows(table) {
  for (const row of table.querySelectorAll("tr.fields")) row.remove();
}

function openRow(row) {
  closeRows(row.closest("table"));
  const list = make("dl");
  for (const [name, text] of Object.entries(fields[row.dataset.run] ?? {}))
    list.append(make("div", {}, make("dt", {}, name), make("dd", {}, text)));
  const cell = make("td", { colSpan: row.cells.length }, list);
  row.after(make("tr", { className: "fields" }, cell));
}

function choose() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const row = target?.closest("tr[data-run]");
  for (const other of document.querySelectorAll(".chosen")) other.classList.remove("chosen");
  if (!row) return;
  row.hidden = false;
  row.classList.add("chosen");
  for (const point of document.querySelectorAll(`a.point[href="#run-${row.dataset.run}"]`))
    point.classList.add("chosen");
  if (target === row) openRow(row);
  row.scrollIntoView({ block: "center" });
}

/* What a point is, beside it: for a mouse, and for keys. */
function showPoints() {
  const tip = make("div", { id: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const show = (event) => {
    const point = event.target.closest?.("a.point");
    tip.hidden = !point;
    if (!point) return;
    tip.textContent = point.getAttribute("aria-label");
    const { left, bottom } = point.getBoundingClientRect();
    const [x, y] = event.type === "focusin" ? [left, bottom] : [event.clientX, event.clientY];
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(x + 12, room))}px`;
    tip.style.top = y + 24 + tip.offsetHeight > innerHeight ? `${y - 12 - tip.offsetHeight}px` : `${y + 16}px`;
  };
  for (const point of document.querySelectorAll("a.point")) {
    const title = point.querySelector("title");
    point.setAttribute("aria-label", title.textContent);
    title.remove(); // the browser would show it too
  }
  document.addEventListener("pointerover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
}

for (const table of document.querySelectorAll("main table")) {
  if (table.tBodies[0]?.rows.length < 2) continue;
  makeSortable(table);
  if (table.tBodies[0].rows.length >= FILTERED) makeFilter(table);
}
showPoints();
addEventListener("hashchange", choose);
choose();
