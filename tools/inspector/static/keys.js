// The keyboard: the list that `?` shows is in the base template.

const LETTERS = "orcmp";

export function listen(page) {
  let after = "";
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const before = after;
    after = event.key;
    if (before === "g" && LETTERS.includes(event.key)) go(`nav a[data-letter="${event.key}"]`);
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "Enter" && event.target.matches("tr")) follow(event.target);
    else if (event.key >= "1" && event.key <= "6") go(`#tabs a[data-tab="${event.key}"]`);
    else if (event.key === "/") focusFilter(event);
    else if (event.key === "?") document.getElementById("help").showModal();
    else if (event.key === " " && event.target === document.body) hold(event, page);
    else if (event.key === "+" || event.key === "=") zoom("in");
    else if (event.key === "-") zoom("out");
    else if (event.key === "0") zoom("all");
    else if (event.key === "ArrowLeft" && event.target.matches("body, main")) zoom("earlier");
    else if (event.key === "ArrowRight" && event.target.matches("body, main")) zoom("later");
  });
}

function go(selector) {
  const link = document.querySelector(selector);
  if (link) location.assign(link.href);
}

function follow(row) {
  const link = row.querySelector("a[href]");
  const more = row.querySelector("details");
  if (link) location.assign(link.href);
  else if (more) more.open = !more.open;
}

function step(by) {
  const rows = [...document.querySelectorAll("table.rows tbody tr[tabindex], .tree summary")].filter(
    (row) => row.offsetParent !== null,
  );
  const at = rows.indexOf(document.activeElement);
  const row = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(Math.max(at + by, 0), rows.length - 1)];
  if (row) row.focus();
}

function focusFilter(event) {
  const filter = document.querySelector("[data-filter]");
  if (!filter) return;
  event.preventDefault();
  filter.focus();
}

function hold(event, page) {
  event.preventDefault();
  page.hold();
}

function zoom(how) {
  const link = document.querySelector(`#timeline-tools a[data-zoom="${how}"]`);
  if (link) location.replace(link.href);
}
