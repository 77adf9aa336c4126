#include <stdatomic.h>

#include "core.h"
#include "descriptors.h"

/* Plain C, so that the loader can ask a core whether it fits before it enters Go. Declared nowhere else: the loader
 * finds it with dlsym. */
const char *receivewal_core_version(void);
void receivewal_core_share(_Atomic uint64_t *descriptors, size_t words);

const char *receivewal_core_version(void)
{
    return RW_CORE_HANDSHAKE;
}

uint64_t *rw_core_descriptors;
size_t rw_core_descriptor_words;

void receivewal_core_share(_Atomic uint64_t *descriptors, size_t words)
{
    /* Go knows no _Atomic, but its atomic operations are the same instructions. */
    _Static_assert(sizeof(_Atomic uint64_t) == sizeof(uint64_t), "the same memory");
    rw_core_descriptors = (uint64_t *)descriptors;
    rw_core_descriptor_words = words;
}
