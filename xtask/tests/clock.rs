//! The node's clock is set forward and back, by hours and by days, while an agent runs and while none
//! does. Only in a machine of its own (`cargo xtask vm`): others have this machine's clock, too.

mod support;

mod needs_root {
    use std::path::Path;
    use std::thread::sleep;
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use nix::sys::time::TimeSpec;
    use nix::time::{ClockId, clock_settime};
    use serde_json::json;
    use xtask::node::pki::Authority;

    use super::support::held::nothing_got_out;
    use super::support::traffic::{SECRET, Traffic};
    use super::support::{Agent, Cluster, sockets};

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    /// Hours and days, forward and back.
    const JUMPS: [i64; 6] = [
        3 * HOUR,
        -3 * HOUR,
        10 * DAY,
        -20 * DAY,
        4000 * DAY,
        -4000 * DAY,
    ];
    const METRICS_PORT: u16 = 9968;
    /// A certificate is looked at again so often.
    const CERTIFICATES: Duration = Duration::from_secs(12);

    /// Prints and returns true where the clock is not this test's to set.
    fn skipped(name: &str) -> bool {
        let ours = std::env::var_os("SALLYPORT_CLOCK").is_some_and(|value| value == "ours");
        if !ours {
            println!(
                "skipped: {name}: sets the machine's clock; `cargo xtask vm` does it in one of its own"
            );
        }
        !ours
    }

    /// The clock, which is right again at the end.
    struct Clock {
        wall: SystemTime,
        since: Instant,
    }

    impl Clock {
        fn new() -> Self {
            let (wall, since) = (SystemTime::now(), Instant::now());
            Self { wall, since }
        }

        /// What it should be now.
        fn right(&self) -> SystemTime {
            self.wall + self.since.elapsed()
        }

        /// Sets it so many seconds ahead of what it should be.
        fn set(&self, ahead: i64) {
            let right = self.right().duration_since(UNIX_EPOCH).expect("after 1970");
            let seconds = i64::try_from(right.as_secs()).expect("this age") + ahead;
            let time = TimeSpec::new(seconds, right.subsec_nanos().into());
            clock_settime(ClockId::CLOCK_REALTIME, time).expect("set the clock");
        }
    }

    impl Drop for Clock {
        fn drop(&mut self) {
            self.set(0);
        }
    }

    /// As objects have it.
    fn date(seconds: u64) -> String {
        let it = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        let (month, day) = (u8::from(it.month()), it.day());
        let (hour, minute, second) = it.to_hms();
        format!(
            "{}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z",
            it.year()
        )
    }

    /// Certificates of the agent and of who scrapes it, valid for a day before and after now.
    fn certificates(cluster: &mut Cluster, clock: &Clock) {
        let now = clock
            .right()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970");
        let day = u64::try_from(DAY).expect("positive");
        let valid = Some(now.as_secs() - day..now.as_secs() + day);
        let mesh = Authority::new("mesh").expect("an authority");
        let directory = cluster.node.directory().to_owned();
        let issue = |name: &str, account: &str| {
            let path = directory.join(name);
            let issued = mesh.issue_workload_for("istio-system", account, &path, 0, valid.clone());
            issued.expect("a certificate");
            path.display().to_string()
        };
        issue("prometheus-tls", "prometheus");
        let own = issue("policy-tls", "sallyport");
        let flags = ["--policy-cert-dir", &own, "--metrics-tls-address"];
        cluster.flags.extend(flags.map(str::to_owned));
        cluster.flags.push(format!("[::]:{METRICS_PORT}"));
    }

    /// Whether the agent proves itself, and takes the certificate of who asks.
    fn is_served(cluster: &Cluster) -> bool {
        let certificate = cluster.node.directory().join("prometheus-tls");
        let ask = move || sockets::ask_over_tls(METRICS_PORT, Some(Path::new(&certificate)));
        let answer = cluster.node.host().within(ask);
        answer.is_ok_and(|answer| answer.contains("\nsallyport_"))
    }

    fn is_in_step(cluster: &Cluster, agent: &mut Agent, what: &str) {
        assert!(agent.runs(), "{what}: it has ended: {}", cluster.log());
        agent.wait(cluster, what, Cluster::ready);
        let (code, status) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{what}: {status}");
        let log = cluster.log();
        assert!(!log.contains("panicked"), "{what}: {log}");
    }

    #[test]
    fn whatever_the_clock_says_it_holds() {
        if skipped("whatever_the_clock_says_it_holds") {
            return;
        }
        let mut cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let clock = Clock::new();
        certificates(&mut cluster, &clock);
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        let traffic = Traffic::start(&cluster);
        assert!(is_served(&cluster), "{}", cluster.log());
        for (port, jump) in (100..).zip(JUMPS) {
            clock.set(jump);
            sleep(Duration::from_secs(2));
            is_in_step(&cluster, &mut agent, &format!("{jump} s"));
            // Something to do, with times in it.
            agent.declare(&cluster, || {
                let ports = json!([{ "protocol": "UDP", "port": port }]);
                let cidrs = json!([{ "cidr": "198.51.100.0/24", "ports": ports }]);
                cluster.lockdown("Enforce", &json!({ "allow": { "cidrs": cidrs } }));
            });
            let valid = jump.abs() < DAY;
            assert_eq!(is_served(&cluster), valid, "{jump} s: {}", cluster.log());
        }
        // Long enough to look at its certificate, and to find that it is not valid.
        clock.set(10 * DAY);
        sleep(CERTIFICATES);
        assert!(
            cluster.log().contains("certificate_trouble"),
            "{}",
            cluster.log()
        );
        clock.set(0);
        assert!(
            is_served(&cluster),
            "the last good one was dropped: {}",
            cluster.log()
        );
        is_in_step(&cluster, &mut agent, "right again");

        // While none runs; who starts then has no certificate until the clock is right.
        for jump in [10 * DAY, -20 * DAY] {
            agent.stop();
            clock.set(jump);
            agent = cluster.agent(true);
            is_in_step(&cluster, &mut agent, &format!("begun at {jump} s"));
            assert!(!is_served(&cluster), "{jump} s");
            clock.set(0);
            sleep(Duration::from_secs(1));
            is_in_step(&cluster, &mut agent, "right again");
            agent.wait(&cluster, "its certificate", |cluster| {
                is_served(cluster).then_some(())
            });
        }
        let (answered, sent) = traffic.stop();
        println!("{answered:?} requests answered, {sent} forbidden packets sent");
        assert!(answered.iter().all(|n| *n > 100) && sent > 100);
        nothing_got_out(&wire, mark);
        agent.stop();
    }

    #[test]
    fn an_audit_that_is_over_does_not_begin_again() {
        if skipped("an_audit_that_is_over_does_not_begin_again") {
            return;
        }
        let cluster = Cluster::new();
        let clock = Clock::new();
        let until = clock
            .right()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970");
        let seconds = until.as_secs() + u64::try_from(HOUR).expect("positive");
        let until = date(seconds);
        cluster.lockdown("Audit", &json!({ "auditUntil": until }));
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let traffic = Traffic::start(&cluster);
        let gets_out = || {
            let mark = wire.mark();
            sleep(Duration::from_millis(500));
            let out = wire.since(mark);
            out.iter().any(|packet| packet.contains(SECRET))
        };
        assert!(gets_out(), "it is audited");
        clock.set(2 * HOUR);
        let begun = Instant::now();
        agent.wait(&cluster, "its end", |_| (!gets_out()).then_some(()));
        println!("enforced {:?} after the jump", begun.elapsed());
        clock.set(0);
        let mark = wire.mark();
        sleep(Duration::from_secs(1));
        // A pass with something to compile.
        agent.declare(&cluster, || {
            let spec = json!({ "auditUntil": until, "allow": { "cluster": ["Services"] } });
            cluster.lockdown("Audit", &spec);
        });
        sleep(Duration::from_secs(1));
        nothing_got_out(&wire, mark);
        let (answered, sent) = traffic.stop();
        assert!(answered.iter().all(|n| *n > 100) && sent > 100);
        agent.stop();
    }
}
