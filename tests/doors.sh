#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Each foreign library has one door: only the named file may include its headers. fusefs includes nothing of the
# daemon and the daemon nothing of fusefs.
cd "$(dirname "$0")/.." || exit 1
bad=0
door() { # header-pattern folder door-files...
    pattern=$1 folder=$2
    shift 2
    for f in $(grep -lE "^#include <$pattern" "$folder"/*.c "$folder"/*.h 2>/dev/null); do
        case " $* " in *" $f "*) ;; *) echo "doors: $f includes <$pattern: only $* may" >&2; bad=1 ;; esac
    done
}
door 'lmdb\.h' daemon daemon/base_db.h # base_*.c alone include it
# Calls in are rpc.c's; calls out to other members are rpc_ask.c's and share nothing with a served call.
door 'grpc/' daemon daemon/rpc.c daemon/rpc_call.c daemon/rpc_answer.c daemon/rpc_impl.h daemon/rpc_ask.c
door 'openssl/' daemon daemon/tls_impl.h daemon/tls_self.c daemon/sha1.c # tls*.c alone include tls_impl.h
door 'microhttpd' daemon daemon/http.c
door 'yaml' daemon daemon/yaml.c
door 'grpc/' fusefs fusefs/client_private.h
door 'fuse' fusefs fusefs/session.c fusefs/ops.h fusefs/control.h
if grep -nE '#include "(\.\./)?daemon/' fusefs/*.[ch] 2>/dev/null; then echo "doors: fusefs includes the daemon" >&2; bad=1; fi
if grep -nE '#include "(\.\./)?fusefs/' daemon/*.[ch] 2>/dev/null; then echo "doors: daemon includes fusefs" >&2; bad=1; fi
exit $bad
