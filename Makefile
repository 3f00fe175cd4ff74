# SPDX-License-Identifier: Apache-2.0
# One Makefile, no recursion, no configure; all output under build/.
#
#   make            build/cairnd build/cairnfs
#   make demo       packages, build, a member, a mount, a tour   (ONCE=1: the tour, then exit)
#   make test       packages, build, every test; ends with "N passed, N failed"
#   make check      the tests without the packages              (T=pattern: only those)
#   make robust N=100   histories of three members under faults, each checked    (MEMBERS=5 FIRST=seed J=at-a-time)
#   make sim SEED=7      one simulated cluster, a line per event    make sim SEEDS=1000   many, on two cores
#   make mutants    planted bugs: how soon is each caught?
#   make bench      Cairn beside etcd and the limit             (ETCD=path: another etcd)
#   make SAN=1 test     ASan and UBSan        make TSAN=1 test    TSan
#   make install PREFIX=/usr/local
CFLAGS   ?= -O2 -g
WARN      = -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror=implicit
SAN_FLAGS = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
TSAN_FLAGS = -fsanitize=thread -fno-omit-frame-pointer -Wno-tsan
O         = build$(if $(SAN),/san)$(if $(TSAN),/tsan)
PREFIX   ?= /usr/local
override CFLAGS += -std=c11 -D_GNU_SOURCE -pthread $(WARN) -MMD -MP $(if $(SAN),$(SAN_FLAGS)) $(if $(TSAN),$(TSAN_FLAGS))
Q         = $(if $(V),,@echo "  $(1)	$@";)

obj     = $(patsubst %.c,$O/%.o,$(wildcard $(addsuffix /*.c,$(1))))
protos  = $(patsubst include/proto/%.proto,$O/proto/%.pb-c.o,$(wildcard include/proto/*.proto))
pb_h    = $(protos:.o=.h)
mains   = $O/daemon/main.o $O/fusefs/main.o $O/daemon/cairnctl.o
units   = $(patsubst tests/unit/%.c,$O/tests/unit/%,$(wildcard tests/unit/*.c))
helpers = $(patsubst tests/e2e/%.c,$O/tests/e2e/%,$(wildcard tests/e2e/*.c))
robust_o = $(call obj,tests/robust)
fuzzers = $(patsubst tests/fuzz/%.c,$O/tests/fuzz/%,$(wildcard tests/fuzz/*.c))
programs = $(if $(wildcard daemon/main.c),$O/cairnd) $(if $(wildcard fusefs/main.c),$O/cairnfs)

# pkg-config lists what gRPC core needs besides itself, but --libs is wanted only once per link.
GRPC_LIBS   := $(shell pkg-config --libs grpc 2>/dev/null)
DAEMON_LIBS  = $(GRPC_LIBS) -lprotobuf-c -llmdb -lmicrohttpd -lyaml -lssl -lcrypto -lm
FUSEFS_LIBS  = $(GRPC_LIBS) -lprotobuf-c -lfuse3 -lm

all: $(programs)

# The include path is the layering: raftcore sees include/ and nothing else; fusefs nothing of the daemon.
$O/raftcore/%.o: override CFLAGS += -Iinclude
$O/daemon/%.o:   override CFLAGS += -Iinclude -I$O/proto
$O/fusefs/%.o:   override CFLAGS += -Iinclude -I$O/proto -DFUSE_USE_VERSION=314 $(shell pkg-config --cflags fuse3 2>/dev/null)
$O/proto/%.o:    override CFLAGS += -I$O/proto -Wno-missing-prototypes
$O/tests/%.o:    override CFLAGS += -Iinclude -I$O/proto -I. -Itests -DFUSE_USE_VERSION=314 $(shell pkg-config --cflags fuse3 2>/dev/null)

$O/libraftcore.a: $(call obj,raftcore);                      $(call Q,AR)rm -f $@; $(AR) rcs $@ $^
$O/libdaemon.a: $(filter-out $(mains),$(call obj,daemon));   $(call Q,AR)rm -f $@; $(AR) rcs $@ $^
$O/libfusefs.a: $(filter-out $(mains),$(call obj,fusefs));   $(call Q,AR)rm -f $@; $(AR) rcs $@ $^
$O/libproto.a: $(protos);                                    $(call Q,AR)rm -f $@; $(AR) rcs $@ $^

daemon_link = $O/libdaemon.a $O/libraftcore.a $O/libproto.a
fusefs_link = $O/libfusefs.a $O/libproto.a

$O/cairnd: $O/daemon/main.o $(daemon_link);    $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(DAEMON_LIBS)
$O/cairnfs: $O/fusefs/main.o $(fusefs_link);   $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(FUSEFS_LIBS)

# A unit test named fs_*.c is of fusefs, raft_*.c of raftcore alone, any other of the daemon.
$O/tests/unit/fs_%: $O/tests/unit/fs_%.o $(fusefs_link);     $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(FUSEFS_LIBS)
$O/tests/unit/raft_%: $O/tests/unit/raft_%.o $O/libraftcore.a; $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^
$O/tests/unit/%: $O/tests/unit/%.o $(daemon_link);           $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(DAEMON_LIBS)
# A fuzz target is LLVMFuzzerTestOneInput; tests/fuzz/replay.inc gives it a main that replays a corpus.
$O/tests/fuzz/fs_%: $O/tests/fuzz/fs_%.o $(fusefs_link);     $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(FUSEFS_LIBS)
$O/tests/fuzz/%: $O/tests/fuzz/%.o $(daemon_link);           $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(DAEMON_LIBS)
$O/tests/e2e/%: $O/tests/e2e/%.o $(daemon_link);             $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(DAEMON_LIBS)
$O/tests/bench/%: $O/tests/bench/%.o $(daemon_link);         $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(DAEMON_LIBS)
$O/tests/robust/robust: $(robust_o) $O/libproto.a;           $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(GRPC_LIBS) -lprotobuf-c -lm
$O/tests/bench/fs_%: $O/tests/bench/fs_%.o $(fusefs_link);   $(call Q,LD)$(CC) $(CFLAGS) -o $@ $^ $(FUSEFS_LIBS)

$O/proto/%.pb-c.c $O/proto/%.pb-c.h &: include/proto/%.proto
	$(call Q,PROTO)mkdir -p $(@D); protoc-c --proto_path=include/proto --c_out=$(@D) $<
$O/%.o: %.c;    $(call Q,CC)mkdir -p $(@D); $(CC) $(CFLAGS) -c -o $@ $<
$O/%.o: $O/%.c; $(call Q,CC)$(CC) $(CFLAGS) -c -o $@ $<

# Generated headers come before whatever may include them.
$(call obj,daemon fusefs tests/unit tests/fuzz tests/e2e tests/bench tests/robust) $(protos): | $(pb_h)

# raftcore may call memcpy and friends, and nothing else: no clock, no file, no socket, no malloc.
check-pure: $(call obj,raftcore) raftcore/allowed-symbols
	@$(LD) -r -o $O/raftcore.o $(filter %.o,$^)
	@! nm -u $O/raftcore.o | awk '{print $$2}' | grep -vxFf raftcore/allowed-symbols

# One door for each foreign library.
check-doors:
	@tests/doors.sh

test-programs: $(units) $(fuzzers) $(helpers) $O/tests/bench/load $O/tests/robust/robust

deps:
	@contrib/deps.sh

check: all test-programs check-doors $(if $(SAN)$(TSAN),,check-pure)
	@O=$O SAN=$(SAN) TSAN=$(TSAN) tests/run.sh $(T)

test: deps
	@$(MAKE) --no-print-directory check

demo: deps
	@$(MAKE) --no-print-directory all
	@O=$O contrib/demo.sh

bench: deps
	@$(MAKE) --no-print-directory all $(patsubst tests/bench/%.c,$O/tests/bench/%,$(wildcard tests/bench/*.c))
	@O=$O tests/bench/run.sh

robust: all $O/tests/robust/robust
	@O=$O MEMBERS=$(or $(MEMBERS),3) tests/robust/run.sh $(or $N,10)

# Whole members over a simulated disk, network and clock; tests/unit/sim.c.
sim: deps
	@$(MAKE) --no-print-directory $O/tests/unit/sim
	@$(if $(SEEDS),O=$O SEEDS=$(SEEDS) SEED=$(SEED) tests/sim/run.sh,VERBOSE=1 SEED=$(or $(SEED),1) $O/tests/unit/sim)

mutants: deps
	@$(MAKE) --no-print-directory all $(patsubst %,$O/tests/unit/%,sim sim_crash sim_install sim_found lease peers base_torn wal)
	@tests/sim/mutants.sh
	@O=$O LIBS="$(DAEMON_LIBS)" tests/sim/member_mutants.sh

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 755 $(programs) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(wildcard contrib/man/*.8) $(DESTDIR)$(PREFIX)/share/man/man8

clean:
	rm -rf build

.PHONY: all check robust sim mutants test-programs check-pure check-doors deps test demo bench install clean
.SECONDARY:
.DELETE_ON_ERROR:
-include $(shell find $O -type f -name '*.d' -not -path '*mount-test*' 2>/dev/null)
