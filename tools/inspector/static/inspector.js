// Begins everything: the feed keeps the page up to date, the keys make it usable without a mouse.
import { follow } from "./feed.js";
import { listen } from "./keys.js";
import { Page } from "./page.js";

const page = new Page(document);
follow(page);
listen(page);
