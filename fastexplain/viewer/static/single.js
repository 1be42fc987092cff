// The page of one neuron, as it is exported alone: a third smaller than with the overview and search.

import { start } from "./pages.js";

start({});
