# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# tls_lib.sh - certificates for a test, made with openssl in a directory of its own; sourced after cluster_lib.sh.
#
#     ca_make NAME                      $C/NAME.pem, $C/NAME.key: signs others
#     cert_make CA NAME DAYS [SAN]      $C/NAME.pem, $C/NAME.key; CN is NAME; DAYS 0: has expired
#     crl_make CA NAME CERT...          $C/NAME.crl (DER): those certificates are revoked
command -v openssl >/dev/null || exit 77
C=$T/certs
mkdir -p "$C"

key_make() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$C/$1.key" 2>>"$T/openssl"; }
ca_make() {
    key_make "$1"
    openssl req -x509 -new -key "$C/$1.key" -subj "/CN=$1" -days 2 -out "$C/$1.pem" 2>>"$T/openssl"
    : >"$C/$1.index"
    cat >"$C/$1.cnf" <<END
[ca]
default_ca = this
[this]
database = $C/$1.index
new_certs_dir = $C
rand_serial = yes
default_md = sha256
default_crl_days = 2
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
END
}
cert_make() { # ca name days san
    local dates=(-days "$3")
    [ "$3" = 0 ] && dates=(-startdate 20200101000000Z -enddate 20200102000000Z)
    key_make "$2"
    openssl req -new -key "$C/$2.key" -subj "/CN=$2" -addext "subjectAltName=${4:-IP:127.0.0.1,DNS:localhost}" \
        -out "$C/$2.csr" 2>>"$T/openssl"
    openssl ca -batch -notext -config "$C/$1.cnf" -cert "$C/$1.pem" -keyfile "$C/$1.key" "${dates[@]}" \
        -in "$C/$2.csr" -out "$C/$2.pem" 2>>"$T/openssl"
}
crl_make() { # ca name certs...
    local ca=$1 name=$2 cert
    shift 2
    for cert; do
        openssl ca -config "$C/$ca.cnf" -cert "$C/$ca.pem" -keyfile "$C/$ca.key" -revoke "$C/$cert.pem" 2>>"$T/openssl"
    done
    openssl ca -config "$C/$ca.cnf" -cert "$C/$ca.pem" -keyfile "$C/$ca.key" -gencrl -out "$C/$name.crl.pem" 2>>"$T/openssl"
    openssl crl -in "$C/$name.crl.pem" -outform DER -out "$C/$name.crl.new"
    mv "$C/$name.crl.new" "$C/$name.crl"
}
# By another name first: whoever reads it meanwhile has the one or the other.
cert_replace() { # from to
    cp "$C/$1.key" "$C/$2.key.new" && cp "$C/$1.pem" "$C/$2.pem.new" && mv "$C/$2.key.new" "$C/$2.key" && mv "$C/$2.pem.new" "$C/$2.pem"
}
