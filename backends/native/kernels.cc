// Kernels that XLA calls through its foreign function interface (CPU, one process): all of them, as one library.

#include "angles.h"
#include "argmax.h"
#include "attend.h"
#include "blank.h"
#include "cut.h"
#include "fuse.h"
#include "layers.h"
#include "multiply.h"
#include "recur.h"
#include "route.h"
