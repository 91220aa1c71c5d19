// Listening to the server. The browser reconnects by itself and sends the id of the last message, which is a version of
// the database; the server then tells what came after it. A page that shows an older version than the feed tells of is
// fetched anew, so nothing is missed between the page and its feed either.

const GIVE_UP_MS = 5000;

export function follow(page) {
  let source = null;
  let again = 0;

  const open = () => {
    source = new EventSource("/events");
    source.addEventListener("open", () => {
      if (!page.still) page.show("live", "live");
      page.refresh();
    });
    source.addEventListener("commits", (message) => concern(page, JSON.parse(message.data)));
    source.addEventListener("figures", (message) => figures(page, JSON.parse(message.data)));
    source.addEventListener("error", () => {
      page.show("lost", "no server");
      if (source.readyState === EventSource.CLOSED) {
        // It gave up: the server refused. Perhaps it was started again, on the same port and with another token.
        clearTimeout(again);
        again = setTimeout(open, GIVE_UP_MS);
      }
    });
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && page.wanted) page.refresh();
  });
  addEventListener("pagehide", () => source && source.close());
  addEventListener("pageshow", (event) => event.persisted && open());
  open();
}

function concern(page, told) {
  page.isDatabaseBusy = !told.complete;
  if (told.version <= page.version && told.complete) return;
  if (page.run && told.complete && !told.runs.includes(page.run)) {
    // The index of runs holds what the head of the page shows.
    if (!told.runs.includes("00000000-0000-0000-0000-000000000000")) return;
  }
  page.refresh();
}

function figures(page, told) {
  const condition = document.getElementById("condition");
  const changed =
    condition && (condition.dataset.kind !== told.kind || (condition.dataset.gone === "yes") !== told.gone);
  if (told.gone) page.show("lost", "no coordinator");
  else if (!page.still) page.show("live", "live");
  if (changed || page.follows === "figures" || (told.version && told.version > page.version && !page.run)) page.refresh();
}
