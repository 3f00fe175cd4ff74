/* SPDX-License-Identifier: Apache-2.0 */
/* tls_self.c - a certificate of our own making, for --auto-tls: encrypts, and proves nothing to anybody.
 *
 * Made once and kept in two files, the key readable by its owner alone.
 *
 * Source: etcd v3.7.1's transport.SelfCert: P-521, serverAuth and clientAuth, its own CA.
 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <unistd.h>
#include "tls_impl.h"

enum { PATH_BYTES = 4096, SAN_BYTES = 4096, SERIAL_BITS = 127 };

static bool add_extension(X509 *cert, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509_EXTENSION *e;
    bool ok;

    X509V3_set_ctx(&ctx, cert, cert, NULL, NULL, 0);
    e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    ok = e && X509_add_ext(cert, e, -1) == 1;
    X509_EXTENSION_free(e);
    return ok;
}

static bool add_names(X509 *cert, const char *const *hosts, size_t n_hosts)
{
    char list[SAN_BYTES];
    size_t n = 0;

    for (size_t i = 0; i < n_hosts; i++) {
        ASN1_OCTET_STRING *ip = a2i_IPADDRESS(hosts[i]);

        if (*hosts[i] == '\0' || n + strlen(hosts[i]) + 8 > sizeof list) {
            ASN1_OCTET_STRING_free(ip);
            continue; /* "unix" and the like have no host; nobody has four thousand bytes of URLs */
        }
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s:%s", n ? "," : "", ip ? "IP" : "DNS", hosts[i]);
        ASN1_OCTET_STRING_free(ip);
    }
    ERR_clear_error(); /* a2i of a name */
    return n == 0 || add_extension(cert, NID_subject_alt_name, list);
}

static bool set_serial(X509 *cert)
{
    BIGNUM *n = BN_new();
    bool ok = n && BN_rand(n, SERIAL_BITS, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1 &&
              BN_to_ASN1_INTEGER(n, X509_get_serialNumber(cert));

    BN_free(n);
    return ok;
}

static X509 *cert_new(EVP_PKEY *key, const char *const *hosts, size_t n_hosts, unsigned years)
{
    X509 *cert = X509_new();
    X509_NAME *name = cert ? X509_get_subject_name(cert) : NULL;
    bool ok = cert && X509_set_version(cert, X509_VERSION_3) == 1 && set_serial(cert) &&
              X509_gmtime_adj(X509_getm_notBefore(cert), 0) &&
              X509_time_adj_ex(X509_getm_notAfter(cert), (int)years * 365, 0, NULL) &&
              X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC, (const unsigned char *)"cairn", -1, -1, 0) == 1 &&
              X509_set_issuer_name(cert, name) == 1 && X509_set_pubkey(cert, key) == 1 &&
              add_extension(cert, NID_basic_constraints, "critical,CA:TRUE") &&
              add_extension(cert, NID_key_usage, "critical,digitalSignature,keyEncipherment,keyCertSign,cRLSign") &&
              add_extension(cert, NID_ext_key_usage, "serverAuth,clientAuth") && add_names(cert, hosts, n_hosts) &&
              X509_sign(cert, key, EVP_sha512()) > 0;

    if (ok)
        return cert;
    X509_free(cert);
    return NULL;
}

/* By another name first, so that a file is whole or not there. */
static bool write_file(const char *path, EVP_PKEY *key, X509 *cert)
{
    char part[PATH_BYTES + 8];
    int fd;
    FILE *f;
    bool ok;

    (void)snprintf(part, sizeof part, "%s.part", path);
    fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    f = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (f == NULL) {
        if (fd >= 0)
            (void)close(fd); /* empty */
        return false;
    }
    ok = (key ? PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) : PEM_write_X509(f, cert)) == 1 &&
         fflush(f) == 0 && fsync(fd) == 0;
    return fclose(f) == 0 && ok && rename(part, path) == 0;
}

static bool make_dirs(const char *path)
{
    char part[PATH_BYTES];

    for (size_t n = 1;; n++) {
        if (path[n] != '/' && path[n] != '\0')
            continue;
        (void)snprintf(part, sizeof part, "%.*s", (int)n, path);
        if (mkdir(part, 0700) && errno != EEXIST)
            return false;
        if (path[n] == '\0')
            return true;
    }
}

int tls_make_self(const char *dir, const char *const *hosts, size_t n_hosts, unsigned years, char text[TLS_TEXT_BYTES])
{
    char cert_path[PATH_BYTES], key_path[PATH_BYTES];
    EVP_PKEY *key = NULL;
    X509 *cert = NULL;
    bool ok;

    if (snprintf(cert_path, sizeof cert_path, "%s/cert.pem", dir) >= PATH_BYTES ||
        snprintf(key_path, sizeof key_path, "%s/key.pem", dir) >= PATH_BYTES) {
        (void)snprintf(text, TLS_TEXT_BYTES, "the path is too long");
        return -ENAMETOOLONG;
    }
    if (access(cert_path, F_OK) == 0 && access(key_path, F_OK) == 0)
        return 0;
    if (!make_dirs(dir)) {
        (void)snprintf(text, TLS_TEXT_BYTES, "mkdir %.150s: %s", dir, strerror(errno));
        return -EINVAL;
    }
    errno = 0;
    key = EVP_EC_gen("P-521");
    cert = key ? cert_new(key, hosts, n_hosts, years) : NULL;
    ok = cert && write_file(key_path, key, NULL) && write_file(cert_path, NULL, cert);
    if (!ok && errno)
        (void)snprintf(text, TLS_TEXT_BYTES, "%.150s: %s", dir, strerror(errno));
    else if (!ok)
        tls_say(text, "making a certificate: ");
    ERR_clear_error();
    X509_free(cert);
    EVP_PKEY_free(key);
    return ok ? 0 : -EINVAL;
}
