/* A panic of the core reaches the host as an error code, and the process goes on. */
#include "server.h"

int main(void)
{
    server server;
    int fd = server_start(&server, SERVER_START, 0);
    receivewal *rw = attach(fd);
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    receivewal_start_point start = RECEIVEWAL_START_POINT_INIT;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;

    for (int i = 0; i < 3; i++)
    {
        o.directory = "panic!operation";
        CHECK_ERROR("in a receive", receivewal_receive(rw, &o), RECEIVEWAL_ERR_INTERNAL, rw, "panic: assignment to entry in nil map");
        CHECK_STATUS("in the background", receivewal_start(rw, &o), RECEIVEWAL_OK);
        CHECK_ERROR("waited for", receivewal_wait(rw, -1), RECEIVEWAL_ERR_INTERNAL, rw, "panic: assignment to entry in nil map");
        o.directory = "panic!export";
        CHECK_ERROR("in an exported function", receivewal_receive(rw, &o), RECEIVEWAL_ERR_INTERNAL, rw, "panic: assignment to entry in nil map");
        CHECK_ERROR("find_start, operation", receivewal_find_start("panic!operation", 0, &start), RECEIVEWAL_ERR_INTERNAL, NULL, "panic");
        CHECK_ERROR("find_start, exported function", receivewal_find_start("panic!export", 0, &start), RECEIVEWAL_ERR_INTERNAL, NULL, "panic");
        CHECK_STATUS("the handle still works", receivewal_identify(rw, &system), RECEIVEWAL_OK);
    }
    CHECK_STATUS("detach", receivewal_detach(rw), RECEIVEWAL_OK);
    server_stop(&server);
    return 0;
}
