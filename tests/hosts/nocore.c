/* A core that is missing, is none, or is another's: argv[1] is what the text must name, argv[2] too. */
#include "check.h"

int main(int argc, char **argv)
{
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    receivewal_start_point start = RECEIVEWAL_START_POINT_INIT;
    receivewal *rw;
    int peer;

    c.fd = silent_connection(&peer);
    for (int i = 1; i < argc; i++)
        CHECK_ERROR("attach", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_CORE, NULL, argv[i]);
    CHECK("no handle", rw == NULL, "%p", (void *)rw);
    for (int i = 1; i < argc; i++)
        CHECK_ERROR("find_start", receivewal_find_start("/tmp", 0, &start), RECEIVEWAL_ERR_CORE, NULL, argv[i]);
    CHECK("the rest still works", receivewal_version() == RECEIVEWAL_VERSION_NUM && strlen(receivewal_errmsg(NULL)) > 20, "%s",
          receivewal_errmsg(NULL));
    printf("# %s\n", receivewal_errmsg(NULL));
    return 0;
}
