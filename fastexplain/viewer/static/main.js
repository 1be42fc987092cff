// The viewer with its server: all pages.

import { comparePage } from "./compare.js";
import { start } from "./pages.js";
import { ratePage } from "./rate.js";
import { tryPage } from "./try.js";

start({ compare: comparePage, rate: ratePage, try: tryPage });
