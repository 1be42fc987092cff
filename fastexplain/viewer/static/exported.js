// The viewer without its server, as it is exported: the pages that need none.

import { overviewPage } from "./overview.js";
import { start } from "./pages.js";
import { searchField, searchPage } from "./searching.js";

start({ "": overviewPage, search: searchPage }, searchField);
