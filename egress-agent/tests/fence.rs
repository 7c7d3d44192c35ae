//! The fence in the kernel: what is set up is found again, and what a stranger changes is seen.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use egress_agent::fence::{Family, Fence, Part};

/// A network namespace of this thread's own.
fn enter() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
}

fn nft(script: &str) -> String {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("nft");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn needs_root_what_is_set_up_is_found_again() {
    enter();
    let (mut fence, missing) = Fence::open(Part::Fence).expect("nf_tables");
    assert_eq!(missing.len(), 0, "{missing:?}");
    assert_eq!(fence.families(), Family::ALL);
    // Trying leaves nothing behind.
    assert_eq!(nft("list ruleset"), "");
    let state = fence.look().unwrap();
    assert!(!state.stands && !state.is_there && state.anywhere.is_empty());

    let devices = BTreeSet::from([1, 7]);
    fence.raise(&devices).unwrap();
    println!("{}", nft("list ruleset"));
    let state = fence.look().unwrap();
    assert!(state.stands && state.is_there);
    assert_eq!((&state.devices, &state.anywhere), (&devices, &devices));
    fence.add(9).unwrap();
    fence.add(9).unwrap();
    fence.remove(7).unwrap();
    fence.remove(7).unwrap();
    assert_eq!(fence.look().unwrap().devices, BTreeSet::from([1, 9]));
    assert_eq!(fence.dropped().unwrap().values().sum::<u64>(), 0);
    assert_eq!(fence.dropped().unwrap().len(), 3);
    // Another that opens it sees the same.
    let (mut other, _) = Fence::open(Part::Fence).unwrap();
    assert_eq!(other.look().unwrap(), fence.look().unwrap());
    let many: BTreeSet<u32> = (1..3000).collect();
    fence.raise(&many).unwrap();
    assert_eq!(fence.look().unwrap().devices, many);
    assert!(fence.lower().unwrap());
    assert!(!fence.lower().unwrap());
    assert!(!fence.look().unwrap().is_there);
}

#[test]
fn needs_root_the_gate_is_found_again_beside_the_fence() {
    enter();
    let (mut fence, _) = Fence::open(Part::Fence).expect("nf_tables");
    let (mut gate, missing) = Fence::open(Part::Gate).expect("nf_tables");
    assert_eq!(missing.len(), 0, "{missing:?}");
    fence.raise(&[1].into()).unwrap();
    gate.raise(&[2, 3].into()).unwrap();
    println!("{}", nft("list ruleset"));
    gate.add(4).unwrap();
    gate.remove(3).unwrap();
    let state = gate.look().unwrap();
    assert!(state.stands);
    assert_eq!(state.devices, BTreeSet::from([2, 4]));
    assert_eq!(fence.look().unwrap().devices, BTreeSet::from([1]));
    // Written by hand it is the same.
    nft("flush chain inet sallyport-gate passed; \
         add rule inet sallyport-gate passed iif != @met meta iifkind \"veth\" counter name dropped drop");
    assert!(gate.look().unwrap().stands);
    nft("flush chain inet sallyport-gate passed; \
         add rule inet sallyport-gate passed iif != @met meta iifkind \"dummy\" counter name dropped drop");
    assert!(!gate.look().unwrap().stands);
    assert!(Fence::end(Part::Fence).unwrap());
    assert!(gate.look().unwrap().is_there);
    assert!(Fence::end(Part::Gate).unwrap());
    assert!(!Fence::end(Part::Gate).unwrap());
    assert_eq!(nft("list ruleset"), "");
}

#[test]
fn needs_root_what_strangers_change_is_seen_and_put_back() {
    enter();
    let (mut fence, _) = Fence::open(Part::Fence).expect("nf_tables");
    let devices = BTreeSet::from([1, 7]);
    let rest = "meta mark & 0x02000000 == 0 counter name dropped drop; meta mark set meta mark & 0xfdffffff";
    for change in [
        "flush ruleset".to_owned(),
        "delete table bridge sallyport".to_owned(),
        "flush chain arp sallyport passed".to_owned(),
        "add rule inet sallyport passed accept".to_owned(),
        "insert rule inet sallyport passed accept".to_owned(),
        "add table inet sallyport { flags dormant; }".to_owned(),
        format!(
            "flush chain inet sallyport passed; add rule inet sallyport passed iif @fenced accept; \
                 add rule inet sallyport passed {}",
            rest.replace("; ", "; add rule inet sallyport passed ")
        ),
    ] {
        fence.raise(&devices).unwrap();
        assert!(fence.look().unwrap().stands);
        nft(&change);
        assert!(!fence.look().unwrap().stands, "{change}");
    }
    fence.raise(&devices).unwrap();
    nft("flush set bridge sallyport fenced");
    let state = fence.look().unwrap();
    assert!(state.stands && state.devices.is_empty());
    assert_eq!(state.anywhere, devices);
    // Written by hand it is the same.
    fence.raise(&devices).unwrap();
    nft(&format!(
        "flush chain inet sallyport passed; add rule inet sallyport passed iif != @fenced accept; \
         add rule inet sallyport passed {}",
        rest.replace("; ", "; add rule inet sallyport passed ")
    ));
    assert!(fence.look().unwrap().stands);
}

/// A process that keeps a network namespace.
struct Pod(std::process::Child);

impl Pod {
    fn new() -> Self {
        let mut unshare = Command::new("unshare");
        let child = unshare.args(["--net", "sleep", "60"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        Self(child)
    }

    fn run(&self, script: &str) -> bool {
        let net = format!("--net=/proc/{}/ns/net", self.0.id());
        let mut nsenter = Command::new("nsenter");
        nsenter.args([&net, "sh", "-ec", script]);
        nsenter.stdout(Stdio::null()).status().unwrap().success()
    }
}

impl Pod {
    fn is_answered(&self, by: SocketAddr) -> bool {
        let net = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        let ask = move || {
            nix::sched::setns(net, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let any: SocketAddr = if by.is_ipv4() {
                "0.0.0.0:0".parse().unwrap()
            } else {
                "[::]:0".parse().unwrap()
            };
            let socket = UdpSocket::bind(any).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            socket.send_to(b"?", by).is_ok() && socket.recv(&mut [0; 1]).is_ok()
        };
        std::thread::spawn(ask).join().unwrap()
    }
}

/// Answers in this thread's network namespace.
fn echo() {
    let socket = UdpSocket::bind("[::]:7").unwrap();
    std::thread::spawn(move || {
        loop {
            let mut bytes = [0; 1];
            let (_, from) = socket.recv_from(&mut bytes).unwrap();
            // Who asks may be gone by then.
            let _ = socket.send_to(&bytes, from);
        }
    });
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn sh(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}");
}

/// Pods that ask what listens on their node: one is routed to, one is at a bridge.
struct Node([Pod; 2]);

impl Node {
    fn new() -> Self {
        let pods = [Pod::new(), Pod::new()];
        let [routed, bridged] = [pods[0].0.id(), pods[1].0.id()];
        sh(&format!(
            "ip link set lo up
             ip link add routed type veth peer name eth0 netns {routed}
             ip link add bridged type veth peer name eth0 netns {bridged}
             ip link add br0 type bridge; ip link set bridged master br0
             ip addr add 10.1.0.1/24 dev routed; ip addr add fd01::1/64 dev routed nodad
             ip addr add 10.2.0.1/24 dev br0; ip addr add fd02::1/64 dev br0 nodad
             ip link set routed up; ip link set bridged up; ip link set br0 up"
        ));
        for (pod, net) in pods.iter().zip(1..) {
            assert!(pod.run(&format!(
                "ip addr add 10.{net}.0.2/24 dev eth0; ip addr add fd0{net}::2/64 dev eth0 nodad; \
                 ip link set eth0 up"
            )));
        }
        echo();
        Self(pods)
    }

    /// Whether each pod is answered, by IPv4 and by IPv6.
    fn answers(&self) -> [bool; 4] {
        let answered = |pod: usize, v6: bool| {
            let net = pod + 1;
            let to = if v6 {
                format!("[fd0{net}::1]:7")
            } else {
                format!("10.{net}.0.1:7")
            };
            // Neighbours are asked for anew.
            let pod = &self.0[pod];
            pod.run("ip neigh flush all") && pod.is_answered(to.parse().unwrap())
        };
        [(0, false), (0, true), (1, false), (1, true)].map(|(pod, v6)| answered(pod, v6))
    }
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// What is not marked gets nowhere, and what is marked gets there without its mark. Chains at ingress stand
/// for the hooks.
#[test]
fn needs_root_what_is_not_marked_gets_nowhere() {
    enter();
    let node = Node::new();
    assert_eq!(node.answers(), [true; 4]);
    let (mut fence, _) = Fence::open(Part::Fence).unwrap();
    fence
        .raise(&[index("routed"), index("bridged")].into())
        .unwrap();
    assert_eq!(node.answers(), [false; 4]);
    let dropped = fence.dropped().unwrap();
    assert!(
        Family::ALL.iter().all(|family| dropped[family] > 0),
        "{dropped:?}"
    );
    nft("table netdev hooks {
           chain a { type filter hook ingress device routed priority 0; meta mark set 0x02000001; }
           chain b { type filter hook ingress device bridged priority 0; meta mark set 0x02000001; }
         }
         table inet after {
           chain c { type filter hook input priority 0; meta mark & 0x02000000 != 0 drop; }
         }");
    assert_eq!(node.answers(), [true; 4]);
    assert_eq!(
        nft("list chain inet sallyport passed")
            .matches("accept")
            .count(),
        2
    );
    fence.remove(index("routed")).unwrap();
    nft("delete table netdev hooks");
    assert_eq!(node.answers(), [true, true, false, false]);
    fence.lower().unwrap();
    assert_eq!(node.answers(), [true; 4]);
}

/// A device is cut off until it is let through, whatever is on it and whoever made it; others are not.
#[test]
fn needs_root_new_devices_are_cut_off_until_they_are_let_through() {
    enter();
    let node = Node::new();
    let (mut gate, _) = Fence::open(Part::Gate).unwrap();
    gate.raise(&[index("routed"), index("bridged")].into())
        .unwrap();
    assert_eq!(node.answers(), [true; 4]);
    gate.raise(&BTreeSet::new()).unwrap();
    assert_eq!(node.answers(), [false; 4]);
    let dropped = gate.dropped().unwrap();
    assert!(
        Family::ALL.iter().all(|family| dropped[family] > 0),
        "{dropped:?}"
    );
    gate.add(index("bridged")).unwrap();
    assert_eq!(node.answers(), [false, false, true, true]);
    gate.add(index("routed")).unwrap();
    assert_eq!(node.answers(), [true; 4]);
    // What is no veth is not asked for: here the node itself.
    gate.raise(&BTreeSet::new()).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    socket.send_to(b"?", "127.0.0.1:7").unwrap();
    socket.recv(&mut [0; 1]).expect("an answer");
    gate.lower().unwrap();
    assert_eq!(node.answers(), [true; 4]);
}
