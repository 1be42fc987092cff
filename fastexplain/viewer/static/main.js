// The viewer with its server: all pages.

import { comparePage } from "./compare.js";
import { overviewPage } from "./overview.js";
import { start } from "./pages.js";
import { ratePage } from "./rate.js";
import { searchField, searchPage } from "./searching.js";
import { tryPage } from "./try.js";

start({ "": overviewPage, search: searchPage, compare: comparePage, rate: ratePage, try: tryPage }, searchField);
