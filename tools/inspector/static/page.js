// Bringing the page up to date: it is fetched anew, and what is marked data-live is put into the present one.
//
// 1. One fetch at a time. A page that takes long to make is fetched less often, so that a browser never takes more than
//    a part of the server's time.
// 2. What a person has opened, focused or scrolled stays so.
// 3. Fetched markup is parsed into a document of its own, in which no script runs.

// At least so long, and so many times as long as the fetch took. In a busy database the page is always out of date: what
// it costs to make then goes off the commits.
const CALM = { least: 500, factor: 20 };
const BUSY = { least: 2000, factor: 40 };

export class Page {
  constructor(document) {
    this.document = document;
    this.still = false; // the reader holds it
    this.wanted = false;
    this.busy = false;
    this.restUntil = 0;
    this.isDatabaseBusy = false; // commits come faster than the feed tells them one by one
  }

  get run() {
    return this.document.body.dataset.run;
  }

  get version() {
    return Number(this.document.body.dataset.version) || 0;
  }

  get follows() {
    return this.document.body.dataset.follows;
  }

  // Bring it up to date soon.
  refresh() {
    this.wanted = true;
    if (this.busy || this.still || this.document.hidden) return;
    this.busy = true;
    setTimeout(() => this.fetchAnew(), Math.max(0, this.restUntil - performance.now()));
  }

  async fetchAnew() {
    const began = performance.now();
    this.wanted = false;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
      if (answer.status === 403) {
        this.show("lost", "not let in");
      } else {
        this.take(new DOMParser().parseFromString(await answer.text(), "text/html"));
      }
    } catch {
      this.wanted = true; // the feed says that the server is away; when it is back, the page is fetched
    }
    const pace = this.isDatabaseBusy ? BUSY : CALM;
    this.restUntil = performance.now() + Math.max(pace.least, pace.factor * (performance.now() - began));
    this.busy = false;
    if (this.wanted) this.refresh();
  }

  take(fresh) {
    const kept = this.keep();
    for (const old of this.document.querySelectorAll("[data-live][id]")) {
      const found = fresh.getElementById(old.id);
      if (found && !old.isEqualNode(found) && !this.isInUse(old)) {
        this.mark(old, found);
        old.replaceWith(this.document.importNode(found, true));
      }
    }
    this.document.body.dataset.version = fresh.body.dataset.version || this.version;
    this.document.title = fresh.title;
    this.restore(kept);
    this.document.dispatchEvent(new CustomEvent("fresh"));
  }

  // Whether a person is selecting text or typing in it.
  isInUse(element) {
    const chosen = this.document.getSelection();
    if (chosen && !chosen.isCollapsed && element.contains(chosen.anchorNode)) return true;
    return element.contains(this.document.activeElement) && this.document.activeElement.matches("input, select");
  }

  // Rows that were not there before are shown as new.
  mark(old, fresh) {
    const name = (row) => row.dataset.run || row.dataset.event || row.dataset.key || row.dataset.commit || row.dataset.trace;
    const known = new Set([...old.querySelectorAll("tr")].map(name));
    for (const row of fresh.querySelectorAll("tr")) {
      if (name(row) && !known.has(name(row))) row.classList.add("fresh");
    }
  }

  keep() {
    const open = new Map();
    for (const each of this.document.querySelectorAll("details[data-keep]")) {
      open.set(this.nameOf(each), each.open);
    }
    const focused = this.document.activeElement;
    const row = focused && focused.closest("[data-live]") ? this.pathOf(focused) : null;
    return { open, row };
  }

  restore({ open, row }) {
    for (const each of this.document.querySelectorAll("details[data-keep]")) {
      const before = open.get(this.nameOf(each));
      if (before !== undefined) each.open = before;
    }
    if (row && this.document.activeElement === this.document.body) {
      const again = this.document.querySelector(row);
      if (again) again.focus({ preventScroll: true });
    }
  }

  nameOf(details) {
    const row = details.closest("tr");
    const where = row ? row.dataset.event || row.dataset.key || row.dataset.task || row.dataset.step || row.rowIndex : "";
    return `${details.closest("[id]").id} ${where} ${details.dataset.keep} ${row ? details.closest("td").cellIndex : ""}`;
  }

  pathOf(element) {
    const holder = element.closest("[data-live]");
    const row = element.closest("tr");
    for (const name of row ? ["run", "event", "key", "commit", "task", "step"] : []) {
      if (row.dataset[name]) return `#${holder.id} tr[data-${name}="${CSS.escape(row.dataset[name])}"]`;
    }
    return element.id ? `#${CSS.escape(element.id)}` : null;
  }

  show(state, words) {
    const live = this.document.getElementById("live");
    if (live && live.dataset.state !== state) {
      live.dataset.state = state;
      live.textContent = words;
    }
  }

  // Hold the page still, or let it move again.
  hold() {
    this.still = !this.still;
    this.show(this.still ? "still" : "live", this.still ? "held still" : "live");
    if (!this.still) this.refresh();
  }
}
