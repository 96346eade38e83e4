/// Everything: `#include <ps3/ps3.h>`, `find_package(ps3)`, link `ps3::ps3`.
///
/// A frame is seen once at low resolution; a prompt scores its places; only the best patches are cut out and encoded:
///   encode_low  encode_prompt  score  select  gather  encode_high  decode
/// The networks run in a runtime of your choice; the ops between them are here.
#pragma once

#include "ps3/budget.h"
#include "ps3/device.h"
#include "ps3/frame.h"
#include "ps3/gather.h"
#include "ps3/position_rows.h"
#include "ps3/scatter.h"
#include "ps3/score.h"
#include "ps3/select.h"
#include "ps3/span.h"
#include "ps3/status.h"
#include "ps3/version.h"
