#include "core.h"

/* Plain C, so that the loader can ask a core whether it fits before it enters Go. Declared nowhere else: the loader
 * finds it with dlsym. */
const char *receivewal_core_version(void);

const char *receivewal_core_version(void)
{
    return RW_CORE_HANDSHAKE;
}
