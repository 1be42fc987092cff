// The viewer without its server, as it is exported: the pages that need none.

import { start } from "./pages.js";

start({});
