//! Certificates in files change while connections stand.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use egress_agent::tls::{Identities, Source};
use tokio::time::{sleep, timeout};

use crate::pki::{Authority, Leaf};
use crate::policy_server::SERVER_ID;
use crate::world::{GATEWAY, GATEWAY_ID, STRANGER_ID, World, client, question, until};

/// Longer than changes are gathered; shorter than the directory is polled.
const SETTLED: Duration = Duration::from_secs(1);

fn follow(directory: &Path) -> Identities {
    let (identities, following) = Source::files(directory).follow();
    tokio::spawn(following);
    identities
}

/// When the next good identity expires.
async fn next(identities: &mut Identities) -> u64 {
    timeout(Duration::from_secs(15), identities.changed())
        .await
        .expect("in time")
        .expect("followed still");
    let identity = identities.borrow_and_update().clone();
    identity.expect("a good one").not_after_seconds()
}

async fn nothing_changes(identities: &mut Identities) {
    assert!(timeout(SETTLED, identities.changed()).await.is_err());
}

fn put(directory: &Path, name: &str, content: &[u8]) {
    fs::write(directory.join(name), content).expect("a file");
}

#[tokio::test]
async fn standing_connections_go_on_and_new_ones_see_the_new_certificate() {
    let world = World::new();
    let standing = world.gateway().await;
    standing.check(&question()).await.expect("an answer");

    // Another authority takes over: the old one's certificates are good for nothing any more.
    let next = Authority::new("next");
    next.sign(&[SERVER_ID]).write(world.certs.path(), &[&next]);
    let leaf = next.sign(&[GATEWAY_ID]);
    let renewed = leaf.identity(&[&next]);
    let (mut entered, mut failed) = (None, 0);
    for _ in 0..100 {
        entered = client(&renewed, GATEWAY, world.server.address).await.ok();
        if entered.is_some() {
            break;
        }
        failed += 1;
        sleep(Duration::from_millis(100)).await;
    }
    let entered = entered.expect("the new certificate is served");
    entered.check(&question()).await.expect("an answer");
    standing
        .check(&question())
        .await
        .expect("the old connection stands");

    // Who trusts both but has a certificate of the old authority only.
    // A handshake is counted after the caller has seen its end.
    until("those before", || world.refused("handshake") == failed).await;
    let old = world.authority.sign(&[GATEWAY_ID]);
    let old = old.identity(&[&world.authority, &next]);
    if let Ok(client) = client(&old, GATEWAY, world.server.address).await {
        assert!(client.check(&question()).await.is_err());
    }
    until("the old one", || world.refused("handshake") == failed + 1).await;
}

#[tokio::test]
async fn a_half_written_certificate_leaves_the_last_good_one() {
    let authority = Authority::new("mesh");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let mut identities = follow(path);
    assert!(identities.borrow().is_none(), "nothing is there yet");

    let first = authority.sign_for(&[SERVER_ID], -60, 1000);
    first.write(path, &[&authority]);
    let served = next(&mut identities).await;

    let second = authority.sign_for(&[SERVER_ID], -60, 2000);
    put(path, "tls.crt", second.pem.as_bytes());
    nothing_changes(&mut identities).await;
    put(path, "tls.key", second.key_pem.as_bytes());
    assert_eq!(next(&mut identities).await, served + 1000);

    // Neither is anything else that can't be used.
    let good = |name: &str| fs::read(path.join(name)).expect("a file");
    let (certificate, key, roots) = (good("tls.crt"), good("tls.key"), good("ca.crt"));
    let half = certificate.len() / 2;
    put(path, "tls.crt", &certificate[..half]);
    nothing_changes(&mut identities).await;
    let bad: [Leaf; 4] = [
        authority.sign_for(&[SERVER_ID], -60, -1),
        authority.sign_for(&[SERVER_ID], 60, 120),
        authority.sign(&[]),
        authority.sign(&[SERVER_ID, STRANGER_ID]),
    ];
    for leaf in bad {
        leaf.write(path, &[&authority]);
        nothing_changes(&mut identities).await;
    }
    put(path, "tls.crt", &certificate);
    put(path, "tls.key", &key);
    put(path, "ca.crt", b"no authority");
    nothing_changes(&mut identities).await;
    fs::remove_file(path.join("ca.crt")).expect("removed");
    nothing_changes(&mut identities).await;
    let stands = identities
        .borrow()
        .as_ref()
        .map(|it| it.not_after_seconds());
    assert_eq!(stands, Some(served + 1000));

    // With one more authority it is another identity.
    put(
        path,
        "ca.crt",
        &[roots, Authority::new("next").pem().into()].concat(),
    );
    assert_eq!(next(&mut identities).await, served + 1000);
}

#[tokio::test]
async fn a_secret_volume_swaps_its_link() {
    let authority = Authority::new("mesh");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let publish = |version: &str, until: i64| {
        let leaf = authority.sign_for(&[SERVER_ID], -60, until);
        leaf.write(&path.join(version), &[&authority]);
        symlink(version, path.join("..data_tmp")).expect("a link");
        fs::rename(path.join("..data_tmp"), path.join("..data")).expect("swapped");
    };
    publish("..one", 1000);
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(format!("..data/{name}"), path.join(name)).expect("a link");
    }
    let mut identities = follow(path);
    let served = next(&mut identities).await;
    publish("..two", 3000);
    fs::remove_dir_all(path.join("..one")).expect("removed");
    let renewed = next(&mut identities).await;
    assert!((1990..=2010).contains(&(renewed - served)), "{renewed}");
}
