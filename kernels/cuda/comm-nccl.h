/* Where NCCL is looked for; tests name a library of their own. */
#pragma once

extern const char *comm_nccl_library; /* "libnccl.so.2" */
